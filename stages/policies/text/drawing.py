"""Drawing tokens: seeded streams, and one pass over the vocabulary for token, log-prob and entropy.

A token is drawn by a race: token i arrives after E_i / w_i, with E_i exponential and w_i its weight, and the first one
wins, which has probability w_i / sum w. Unlike the inverse of the cumulative distribution, where each of thousands of
boundaries moves with the rounding of all that stands before it, a race changes its winner by rounding only where two
arrive at the same time: a row is drawn alike whatever stands beside it. To need few random numbers it is run in two
heats: between blocks of the vocabulary, then within the block that won.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 256  # tokens of a block
SHORT = 256  # most likely tokens among which the nucleus is looked for first
ELEMENTS = 2**19  # logits looked at together: they stay in a processor's cache


class Drawn(NamedTuple):
    """What is drawn for each row `[b]`."""

    token: Tensor
    logp: Tensor  # at temperature 1, nats
    entropy: Tensor  # of the whole distribution at temperature 1, nats


def digest(seed: int, row: str) -> int:
    """The seed of one row's own stream, of 56 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=7).digest(), "big")


def stream(seed: int, row: str) -> torch.Generator:
    """Random numbers of one row: the same wherever and beside whatever the row is sampled."""
    return torch.Generator().manual_seed(digest(seed, row))


def noise(streams: Sequence[torch.Generator], vocabulary: int, device: torch.device | str = "cpu") -> Tensor:
    """Exponential numbers of the next token of each row: `[b, blocks + BLOCK]`."""
    count = -(-vocabulary // BLOCK) + BLOCK
    uniform = torch.stack([torch.rand(count, generator=own, dtype=torch.float64) for own in streams])
    return uniform.log_().neg_().to(device)


def draw(logits: Tensor, noise: Tensor | None, temperature: float, top_p: float) -> Drawn:
    """Draw one token a row.

    The nucleus is the smallest set of most likely tokens with a mass of at least `top_p`, and what is as likely as the
    last of them.

    Args:
        logits: `[b,v]`, float32 at least.
        noise: of the rows, see `noise`; none is needed at temperature 0.
        temperature: divides the logits; 0 is greedy.
        top_p: mass of the nucleus, 1 for the whole distribution.
    """
    size = max(1, ELEMENTS // logits.shape[-1])
    parts = [
        _draw(logits[i : i + size], None if noise is None else noise[i : i + size], temperature, top_p)
        for i in range(0, len(logits), size)
    ]
    return Drawn(*map(torch.cat, zip(*parts, strict=True)))


def _draw(logits: Tensor, noise: Tensor | None, temperature: float, top_p: float) -> Drawn:
    top = logits.max(-1, keepdim=True)
    below = logits - top.values
    weights = below.exp()
    total = weights.sum(-1)
    entropy = total.log() - torch.linalg.vecdot(weights, below) / total
    if temperature == 0 or noise is None:
        return Drawn(top.indices.squeeze(-1), -total.log(), entropy)
    if temperature != 1:
        weights = torch.exp(below / temperature)
    if top_p < 1:
        weights = weights.where(weights >= cutoff(weights, top_p), 0.0)
    token = race(weights, noise)
    return Drawn(token, below.gather(-1, token[:, None]).squeeze(-1) - total.log(), entropy)


def race(weights: Tensor, noise: Tensor) -> Tensor:
    """Draw a token of each row `[b]` with probability in proportion to its weight `[b,v]`."""
    blocks = -(-weights.shape[-1] // BLOCK)
    short = blocks * BLOCK - weights.shape[-1]
    blocked = (torch.nn.functional.pad(weights, (0, short)) if short else weights).unflatten(-1, (blocks, BLOCK))
    block = (blocked.sum(-1) / noise[:, :blocks]).argmax(-1)
    within = blocked[torch.arange(len(block), device=block.device), block] / noise[:, blocks:]
    return block * BLOCK + within.argmax(-1)


def cutoff(weights: Tensor, top_p: float) -> Tensor:
    """Weight of the last token in the nucleus of each row: `[b,v] -> [b,1]`."""
    wanted = weights.sum(-1, keepdim=True) * top_p
    last, found = edge(weights.topk(min(SHORT, weights.shape[-1]), -1).values, wanted)
    if not found.all():
        last[~found] = edge(weights[~found].sort(-1, descending=True).values, wanted[~found])[0]
    return last[:, None]


def edge(ranked: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The weight with which the sum of weights reaches what is wanted, and whether it does: `[b,n], [b,1] -> [b]`."""
    mass = ranked.cumsum(-1)
    last = (mass < wanted).sum(-1, keepdim=True).clamp(max=ranked.shape[-1] - 1)
    return ranked.gather(-1, last).squeeze(-1), mass[:, -1] >= wanted.squeeze(-1)
