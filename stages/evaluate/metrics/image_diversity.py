"""Diversity of images: how far apart the answers to different prompts are, and those to one prompt."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.spatial.distance import pdist

from stages import images
from stages.evaluate.metrics._rows import Floats, Rows
from stages.parts import part


@part(families=("image",), range=(0.0, 2.0))
class ImageDiversity:
    """Mean distance between answers, in pixels of a small copy.

        d(a, b)         = root mean square difference of the copies' colour values, in -1 .. 1     (0 .. 2)
        image_diversity = mean d over pairs of answers to different prompts
        within          = mean d over pairs of answers to the same prompt

    A policy that draws one picture whatever it is asked has image_diversity 0; one that has one picture for each
    prompt has within 0, which is how image policies collapse. Read both beside `base` and `base_within`, the
    baseline's: the level depends on the prompts. Averaging to `side` x `side` makes the distance one of layout and
    colour, deaf to noise and texture. Without two answers to any prompt `within` is left out; without two prompts
    image_diversity is 0.

    Args:
        side: pixels of the copies' sides.

    `update` takes `image` and `base_image` (base64 of a picture file) and `prompt` (its prompt's id), `[n]`.

    >>> import torch
    >>> black, white = (images.encode(torch.full((1, 8, 8), value)) for value in (-1.0, 1.0))
    >>> metric = ImageDiversity()
    >>> metric.update(image=[black, black, white], base_image=[black, white, white], prompt=["a", "a", "b"])
    >>> metric.compute()
    {'image_diversity': 2.0, 'within': 0.0, 'base': 1.0, 'base_within': 2.0}
    """

    def __init__(self, *, side: Annotated[int, Field(ge=1)] = 8) -> None:
        self.side = side
        self.rows = Rows("image_diversity")

    def update(self, image: Sequence[str], base_image: Sequence[str], prompt: Sequence[str]) -> None:
        """Add rows."""
        self.rows.add(image=image, base_image=base_image, prompt=prompt)

    def compute(self) -> dict[str, float]:
        """Distances in 0 .. 2."""
        mine = self._distances(self.rows.texts("image"))
        base = self._distances(self.rows.texts("base_image"))
        _, at = np.unique(self.rows.texts("prompt"), return_inverse=True)
        one, other = np.triu_indices(len(at), k=1)
        same = at[one] == at[other]  # [pairs], in the order of pdist
        found = {"image_diversity": _mean(mine[~same]), "base": _mean(base[~same])}
        if same.any():
            found |= {"within": _mean(mine[same]), "base_within": _mean(base[same])}
        return {key: found[key] for key in ("image_diversity", "within", "base", "base_within") if key in found}

    def _distances(self, pictures: list[str]) -> Floats:
        """The distance of every pair of pictures, `[n (n - 1) / 2]`."""
        copies = np.stack([small(picture, self.side) for picture in pictures])
        return pdist(copies) / np.sqrt(copies.shape[1])


def small(picture: str, side: int) -> Floats:
    """Colour values in -1 .. 1 of a picture averaged to `side` x `side`: `[side * side * 3]`."""
    from PIL import Image

    copy = images.open_picture(picture).convert("RGB").resize((side, side), Image.Resampling.BOX)
    return np.asarray(copy, np.float64).reshape(-1) / 127.5 - 1


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0
