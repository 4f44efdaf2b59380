"""Scenes as pictures of 32 x 32 pixels: flat colours on a plain light ground, hard edges, objects well apart."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.errors import UserError
from stages.scenes.words import COLORS, SIZES, Color, Relation, Scene, Shape, Size, caption

SIDE = 32  # pixels
GAP = 2  # pixels between two objects at least, so that blur does not join them
LATTICE = 4  # pixels between the places where an object may begin: a small denoiser learns such pictures in minutes
EXTENT: dict[Size, int] = {"small": 8, "large": 12}  # pixels; at 8 a cross is still no circle
GROUNDS = ((1.0, 1.0, 1.0), (0.85, 0.85, 0.85))
RGB: dict[Color, tuple[float, float, float]] = {  # corners of the cube: as far from each other and white as can be
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "purple": (1, 0, 1),
    "black": (0, 0, 0),
}
TRIES = 1000  # placements from scratch before a scene counts as too full

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside


@cache
def stencil(shape: Shape, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels `[height,width]` that a shape covers of its bounding box.

    >>> stencil("triangle", 4, 4).astype(int)
    array([[0, 1, 1, 0],
           [0, 1, 1, 0],
           [1, 1, 1, 1],
           [1, 1, 1, 1]])
    """
    y, x = np.mgrid[:height, :width]
    u, v = (2 * x + 1) / width - 1, (2 * y + 1) / height - 1  # pixel centres in [-1, 1]
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "triangle":
        return np.abs(u) <= (y + 1) / height
    if shape == "cross":
        return (np.abs(u) <= 0.3) | (np.abs(v) <= 0.3)
    return np.ones((height, width), bool)


def render(spec: Scene, seed: int) -> Tensor:
    """Draw a scene `[3,32,32]` in [-1, 1]; places, ground and what the scene leaves open follow from the seed.

    Raises:
        UserError: the objects do not fit.
    """
    rng = np.random.default_rng(seed)
    colors = [thing.color or str(rng.choice(COLORS)) for thing in spec.objects]
    canvas = np.empty((SIDE, SIDE, 3), np.float32)
    canvas[:] = GROUNDS[rng.integers(len(GROUNDS))]
    for number, (left, top, right, bottom) in place(spec, rng):
        covered = stencil(spec.objects[number].shape, bottom - top, right - left)
        canvas[top:bottom, left:right][covered] = RGB[colors[number]]  # type: ignore[index]
    return torch.from_numpy(canvas * 2 - 1).permute(2, 0, 1).contiguous()


def place(spec: Scene, rng: np.random.Generator) -> list[tuple[int, Box]]:
    """A box for each object, with the number of its thing: no two nearer than GAP, the relation plain to see.

    Raises:
        UserError: the objects do not fit.
    """
    for _ in range(TRIES):
        placed: list[tuple[int, Box]] = []
        for number, thing in enumerate(spec.objects):
            extent = EXTENT[thing.size or str(rng.choice(SIZES))]  # type: ignore[index]
            for _ in range(thing.count):
                free = np.argwhere(_free(number, extent, placed, spec.relation))
                if not len(free):
                    break
                top, left = free[rng.integers(len(free))].tolist()
                placed.append((number, (left, top, left + extent, top + extent)))
        if len(placed) == sum(thing.count for thing in spec.objects):
            return placed
    raise UserError(f"no room for {caption(spec)}", where="scene", mend="ask for fewer or smaller objects")


def _free(number: int, extent: int, placed: list[tuple[int, Box]], relation: Relation | None) -> NDArray[np.bool_]:
    """Where the next object's top left corner may lie."""
    reach = SIDE - extent + 1
    free = np.zeros((reach, reach), bool)
    free[::LATTICE, ::LATTICE] = True
    for other, (left, top, right, bottom) in placed:
        x, y = (max(0, near - GAP - extent + 1) for near in (left, top))
        free[y : bottom + GAP, x : right + GAP] = False
        if relation and {number, other} == {relation.a, relation.b}:
            across, down = np.arange(reach)[None] - left, np.arange(reach)[:, None] - top
            across, down = (2 * across + extent - (right - left)), (2 * down + extent - (bottom - top))  # of centres
            along, aside = (across, down) if relation.where in ("left of", "right of") else (down, across)
            ahead = (relation.where in ("right of", "below")) == (number == relation.a)
            free &= (along if ahead else -along) >= 2 * np.abs(aside)  # within 27 degrees
            free &= np.abs(along) >= extent + (right - left) + 2 * GAP
    return free
