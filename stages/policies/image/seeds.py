"""Seeded streams: a row's noise is the same wherever and beside whatever the row is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(name: str) -> torch.Generator:
    """The stream of random numbers that a name stands for."""
    digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def normals(names: Sequence[str], shape: Sequence[int]) -> Tensor:
    """Standard normal numbers `[n, *shape]`, a row from the stream of each name; equal names share a row."""
    rows = {name: torch.randn(*shape, generator=generator(name)) for name in dict.fromkeys(names)}
    return torch.stack([rows[name] for name in names])


def levels(draws: Sequence[str], count: int, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What prices an image at `count` noise levels: equal draws share everything.

    Level j is uniform in [j, j+1) / count: each alone is uniform over a random j, and together they spread evenly.

    Returns:
        Where each level lies in (0, 1) `[n, count]`, noise `[n, count, *shape]`, and a uniform number `[n]`.
    """
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for draw in dict.fromkeys(draws):
        stream = generator(draw)
        coin, place = torch.rand((), generator=stream), torch.rand(count, generator=stream)
        found[draw] = ((torch.arange(count) + place) / count, torch.randn(count, *shape, generator=stream), coin)
    where, noise, coins = (torch.stack([found[draw][i] for draw in draws]) for i in range(3))
    return where, noise, coins
