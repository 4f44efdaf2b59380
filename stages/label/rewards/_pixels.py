"""What image rewards share: candidates as pixels, in batches of one shape, and values kept in the declared range."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.errors import UserError
from stages.images import decode, open_picture
from stages.records import Candidate, Prompt

MOST = 1000.0  # kilobytes of a JPEG; a larger file counts as this
BATCH = 32  # images a model sees at once


def told(
    reward: Any, pixels: Callable[[Tensor, list[Prompt]], Tensor], prompts: list[Prompt], candidates: list[Candidate]
) -> list[float | None]:
    """What `pixels` says of each candidate's image, clamped to the reward's range; None where there is no image.

    Raises:
        UserError: an image that cannot be read, naming its candidate.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    low, high = reward.spec.range
    images = [image(candidate) if candidate.image else None for candidate in candidates]
    alike: dict[torch.Size, list[int]] = {}  # rows by the shape of their image
    for row, one in enumerate(images):
        if one is not None:
            alike.setdefault(one.shape, []).append(row)
    found: list[float | None] = [None] * len(candidates)
    for rows in alike.values():
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            stack = torch.stack([images[row] for row in some]).to(device)  # type: ignore[misc]  # [b,c,h,w]
            with torch.no_grad():
                values = pixels(stack, [prompts[row] for row in some]).clamp(low, high)  # [b]
            for row, value in zip(some, values.tolist(), strict=True):
                found[row] = value
    return found


def image(candidate: Candidate) -> Tensor:
    """The candidate's image `[c,h,w]` in [-1, 1].

    Raises:
        UserError: it is no picture.
    """
    try:
        return decode(candidate.image)
    except UserError as error:
        raise UserError(error.what, where=f"candidate {candidate.id} image", mend=error.mend) from None


def colour(images: Tensor) -> Tensor:
    """Images `[b,3,h,w]`; grey ones get three equal channels."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def kilobytes(candidate: Candidate) -> float:
    """Size of the image as a JPEG of quality 95, in thousands of bytes.

    A small image is enlarged without smoothing until its short side is at least 64, by a whole factor: at 8x8 the
    header would be nearly all there is.

    Raises:
        UserError: it is no picture.
    """
    from PIL import Image

    try:
        opened = open_picture(candidate.image)
    except UserError as error:
        raise UserError(error.what, where=f"candidate {candidate.id} image", mend=error.mend) from None
    plain = opened.convert("L" if opened.mode in {"1", "L", "I;16", "LA"} else "RGB")
    factor = -(-64 // min(plain.size))  # rounded up
    if factor > 1:
        plain = plain.resize((plain.width * factor, plain.height * factor), Image.Resampling.NEAREST)
    out = io.BytesIO()
    plain.save(out, format="JPEG", quality=95)
    return len(out.getvalue()) / 1000
