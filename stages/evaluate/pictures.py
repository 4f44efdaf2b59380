"""Pictures of the report: embedded in the page at a size that it shows, and the grids before.png and after.png."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from stages import images
from stages.evaluate.results import Sample

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 256  # pixels up to which a picture is embedded as it is
COARSE = 96  # pixels below which its pixels are shown as squares
ACROSS, DOWN = 8, 8  # of a grid


def shrunk(image: str) -> Image:
    """A picture, at most SIDE pixels wide and high."""
    from PIL.Image import Resampling

    found = images.open_picture(image)
    if max(found.size) > SIDE:
        found = found.convert("RGB")
        found.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    return found


def embed(image: str, label: str) -> Markup:
    """A picture as an HTML element that needs no other file."""
    shown = shrunk(image)
    kind = "coarse" if max(shown.size) < COARSE else "fine"
    tag = Markup('<img class="{}" src="data:image/png;base64,{}" alt="{}">')
    return tag.format(kind, images.encode_picture(shown), label)


def drawn(samples: Sequence[Sample]) -> list[Sample]:
    """All samples in an order that looks at the prompts alone."""
    return sorted(samples, key=lambda sample: hashlib.sha256(sample.prompt.encode("utf-8", "replace")).digest())


def rows(answers: Sequence[Sequence[str]]) -> list[list[str]]:
    """The rows of a grid: each prompt's answers side by side, several prompts in a row where they fit.

    >>> rows([["a"], ["b"]])
    [['a', 'b']]
    """
    k = max(1, max(map(len, answers), default=0))
    each = max(1, ACROSS // k)  # prompts a row
    padded = [[*row[:ACROSS], *[""] * (min(k, ACROSS) - len(row))] for row in answers]
    grid = [sum(padded[start : start + each], []) for start in range(0, len(padded), each)]
    return grid[:DOWN]


def sheets(folder: Path, samples: Sequence[Sample]) -> list[Path]:
    """Write before.png and after.png, the same prompts at the same places; nothing where answers are texts."""
    shown = [sample for sample in drawn(samples) if sample.final_images]
    found = []
    for name, answers in (
        ("before", [s.base_images for s in shown]),
        ("after", [s.final_images for s in shown]),
    ):
        if shown:
            small = [[images.encode_picture(shrunk(image)) for image in row] for row in answers]
            images.grid(rows(small), side=max(64, *shrunk(shown[0].final_images[0]).size)).save(folder / f"{name}.png")
            found.append(folder / f"{name}.png")
    return found
