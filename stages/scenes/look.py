"""What a picture of a scene shows, and whether it is what was asked for: a verifier without a model.

A pixel belongs to the colour on whose line from the ground's colour it lies nearest, if it is more than half way
there: so a blurred edge keeps its object's colour and its place. Connected pixels of a colour are an object; its shape
is the one whose stencil, stretched to its bounding box, it covers best.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from stages.scenes.draw import EXTENT, GROUNDS, RGB, SIDE, stencil
from stages.scenes.words import SHAPES, Relation, Thing, scene

LEAST = 0.01  # of the picture's area: less is a speck, not an object
MOST = 0.4  # more is no object either: the picture was flooded
FIT = 0.7  # intersection over union with a shape's stencil, below which it is none of the shapes
SLIM = 0.7  # short over long side of the bounding box, below which it is none either
SMOOTH = 0.45  # pixels: standard deviation of the blur that takes noise away before a cross loses its arms
NEAR = 0.1  # GenEval's position threshold: boxes whose centres are nearer than this share of their sides do not differ
JOINED = np.ones((3, 3), int)  # pixels that touch by a corner are one object

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of a picture of SIDE


@dataclass(frozen=True)
class Found:
    """An object seen in a picture."""

    shape: str  # "" where it is none of the shapes
    color: str
    size: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of its box, (x, y)."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def detect(pixels: Tensor) -> list[Found]:
    """All objects of a picture `[c,h,w]` in [-1, 1], by colour, then from top to bottom.

    >>> from stages.scenes.draw import render
    >>> red_cross = render(scene({"objects": [{"shape": "cross", "color": "red"}]}), 0)
    >>> [(found.shape, found.color) for found in detect(red_cross)]
    [('cross', 'red')]
    """
    return [_look(name, mask, box) for name, mask, box in _regions(_painted(pixels))]


def _painted(pixels: Tensor) -> NDArray[np.int64]:
    """The number of each pixel's colour in RGB, `[h,w]`, and -1 on the ground."""
    raw = pixels.detach().float().cpu().clamp(-1, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
    image = (ndimage.gaussian_filter(raw, (SMOOTH, SMOOTH, 0)) + 1) / 2  # [h,w,3]
    middle = np.median(image.reshape(-1, 3), axis=0)
    ground = min(GROUNDS, key=lambda color: float(np.abs(middle - color).sum()))
    line = np.array([*RGB.values()]) - ground  # [k,3]
    away = image - ground  # [h,w,3]
    share = ((away @ line.T) / (line**2).sum(1)).clip(0, 1)  # [h,w,k] how far along each line
    apart = ((away[..., None, :] - share[..., None] * line) ** 2).sum(-1)  # [h,w,k] squared distance from the line
    nearest = apart.argmin(-1)
    covered = np.take_along_axis(share, nearest[..., None], -1)[..., 0] > 0.5
    return np.where(covered, nearest, -1)


def _regions(painted: NDArray[np.int64]) -> Iterator[tuple[str, NDArray[np.bool_], Box]]:
    """Colour, pixels in its bounding box, and bounding box of every region that can be an object."""
    for number, name in enumerate(RGB):
        labels, _ = ndimage.label(painted == number, JOINED)
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
            mask = labels[rows, columns] == label
            if LEAST * painted.size < mask.sum() < MOST * painted.size:
                box = (columns.start, rows.start, columns.stop, rows.stop)
                yield name, mask, tuple(edge * SIDE / len(painted) for edge in box)


def _look(color: str, mask: NDArray[np.bool_], box: Box) -> Found:
    """Shape and size of a region."""
    fits = {shape: _overlap(mask, stencil(shape, *mask.shape)) for shape in SHAPES}
    best = max(fits, key=fits.__getitem__)
    extent = (box[2] - box[0] + box[3] - box[1]) / 2
    size = min(EXTENT, key=lambda name: abs(EXTENT[name] - extent))
    known = fits[best] >= FIT and min(mask.shape) >= SLIM * max(mask.shape)
    return Found(best if known else "", color, size, box)


def _overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    return float((one & other).sum() / (one | other).sum())


def verify(pixels: Tensor, checks: dict[str, Any], *, where: str = "checks") -> dict[str, Any]:
    """Hold a picture `[c,h,w]` in [-1, 1] against what it shall show: all of that, and nothing else.

    The wishes are the number of all objects; for each thing its shape, and its colour and size where stated, each
    granted for the share of its count that has it; and the relation. A wished object is first matched with a seen one
    of its shape, as in GenEval, then with the one that has most of the rest.

    Args:
        pixels: the picture.
        checks: `objects` and perhaps `relation`, see `Scene`.
        where: whose checks they are, for an error.

    Returns:
        `correct`: every wish is granted; `score` in [0, 1]: the share of wishes granted; `reason`: what is wrong, one
        fault a line, in GenEval's words; `found`: what was seen.

    Raises:
        UserError: the checks are not a scene.

    Differences from GenEval (Ghosh et al., NeurIPS 2023, arXiv 2310.11513): objects that were not asked for are always
    a fault, there in counting only; sizes are checked too; the score.

    >>> from stages.scenes.draw import render
    >>> seen = render(scene({"objects": [{"shape": "cross", "color": "red"}]}), 0)
    >>> verdict = verify(seen, {"objects": [{"shape": "cross", "color": "blue"}]})
    >>> verdict["correct"], round(verdict["score"], 3), verdict["reason"]
    (False, 0.667, 'expected blue cross>=1, found 0')
    """
    spec, found = scene(checks, where=where), detect(pixels)
    wanted = sum(thing.count for thing in spec.objects)
    granted = [min(wanted, len(found)) / max(wanted, len(found))]
    reasons = [] if len(found) == wanted else [f"expected objects={wanted}, found {len(found)}"]
    matched = _match(spec.objects, found)
    for thing, seen in zip(spec.objects, matched):
        for name in ("shape", "color", "size"):
            wish = getattr(thing, name)
            if wish is not None:
                have = sum(getattr(one, name) == wish for one in seen)
                granted.append(have / thing.count)
                if have < thing.count:
                    said = wish if name == "shape" else f"{wish} {thing.shape}"
                    reasons.append(f"expected {said}>={thing.count}, found {have}")
    if spec.relation:
        granted.append(float(_related(spec.relation, spec.objects, matched)))
        if not granted[-1]:
            reasons.append(f"expected {spec.objects[spec.relation.a].shape} {spec.relation.where} target")
    return {
        "correct": not reasons,
        "score": sum(granted) / len(granted),
        "reason": "\n".join(reasons),
        "found": found,
    }


def _match(things: tuple[Thing, ...], found: list[Found]) -> list[list[Found]]:
    """The seen objects that stand for each thing, none for two."""
    slots = [number for number, thing in enumerate(things) for _ in range(thing.count)]
    gain = [
        [
            3 * (one.shape == things[n].shape) + (one.color == things[n].color) + (one.size == things[n].size)
            for one in found
        ]
        for n in slots
    ]
    matched: list[list[Found]] = [[] for _ in things]
    if found:
        for slot, one in zip(*linear_sum_assignment(np.array(gain), maximize=True)):
            matched[slots[slot]].append(found[one])
    return matched


def _related(relation: Relation, things: tuple[Thing, ...], matched: list[list[Found]]) -> bool:
    """All of `a` and `b` are there, and every `a` is where it shall be from every `b`."""
    sides = [[one for one in matched[n] if one.shape == things[n].shape] for n in (relation.a, relation.b)]
    if [len(side) for side in sides] != [things[n].count for n in (relation.a, relation.b)]:
        return False
    return all(relation.where in relations(a.box, b.box) for a in sides[0] for b in sides[1])


def relations(a: Box, b: Box) -> set[str]:
    """Where box `a` lies from box `b`, by GenEval's rule: none, one, or two where it is oblique.

    >>> relations((0, 0, 8, 8), (20, 2, 28, 10))
    {'left of'}
    """
    offset = np.array([a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]]) / 2
    sides = np.array([a[2] - a[0] + b[2] - b[0], a[3] - a[1] + b[3] - b[1]])
    clear = np.maximum(np.abs(offset) - NEAR * sides, 0) * np.sign(offset)
    if not clear.any():
        return set()
    x, y = clear / np.linalg.norm(offset)
    named = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in named.items() if holds}
