"""Arithmetic of drawing tokens: positions, seeded streams, the nucleus."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def positions(attention: Tensor) -> Tensor:
    """Position of each token among the real tokens of its row: `[b,s]`."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of each row's distribution in nats: `[b,v] -> [b]`."""
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def stream(seed: int, row: str, count: int) -> Tensor:
    """Uniform numbers of one row: the same wherever and beside whatever the row is sampled."""
    digest = hashlib.blake2b(f"{seed}:{row}".encode(), digest_size=7).digest()
    return torch.rand(count, generator=torch.Generator().manual_seed(int.from_bytes(digest, "big")))


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution at `uniform`; temperature 0 is greedy.

    The nucleus is the smallest set of most likely tokens with a mass of at least `top_p`. It is looked for among the
    256 most likely tokens first, and in the whole vocabulary for the rows where those do not reach it.

    Args:
        logits: `[b,v]`.
        uniform: `[b]` in [0, 1).
        temperature: divides the logits.
        top_p: mass of the nucleus, 1 for the whole distribution.

    Returns:
        Token ids `[b]`.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probs = (logits / temperature).softmax(-1)
    if top_p >= 1:
        mass = probs.cumsum(-1)
        return torch.searchsorted(mass, (uniform[:, None] * mass[:, -1:])).squeeze(-1).clamp(max=probs.shape[-1] - 1)
    token, found = nucleus(probs, uniform, top_p, min(256, probs.shape[-1]))
    if not found.all():
        token[~found] = nucleus(probs[~found], uniform[~found], top_p, probs.shape[-1])[0]
    return token


def nucleus(probs: Tensor, uniform: Tensor, top_p: float, width: int) -> tuple[Tensor, Tensor]:
    """Draw from the nucleus among the `width` most likely tokens: tokens `[b]`, and whether it ends there `[b]`."""
    ranked, order = probs.topk(width, -1)
    mass = ranked.cumsum(-1)
    found = (mass[:, -1] >= top_p) | (width == probs.shape[-1])
    mass = (ranked * (mass - ranked < top_p)).cumsum(-1)  # the token that crosses top_p is the last one in
    at = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:]).clamp(max=width - 1)
    return order.gather(-1, at).squeeze(-1), found
