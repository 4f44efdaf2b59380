"""Attention over packed trees on a CPU: a block of queries over the keys that any of them sees.

A tree is a prompt and its answers, side by side in the packed sequence. A block of its queries sees the prompt so far
and the answers that it touches: what lies beside or after that is not computed, and what is left over is masked. The
query heads that share a key head stand under each other, so that no key is repeated for them. All blocks are one
operation of autograd: it keeps queries, keys, values and the output once, in the layout of the layers around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

ROWS = 80  # queries of a block, or so


@dataclass(frozen=True)
class Block:
    """Queries side by side, and the keys that any of them sees; places are those of the packed sequence."""

    queries: slice
    keys: tuple[slice, ...]  # one stretch, or the prompt and what follows the answers before

    def of(self, values: Tensor, dim: int = 2) -> Tensor:
        """Those of `[1,h,s,d]` that are keys here."""
        parts = [values.narrow(dim, each.start, each.stop - each.start) for each in self.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def blocks(trees: Sequence[Sequence[int]]) -> Iterator[Block]:
    """Blocks of trees that follow each other, each given by the tokens of its prompt and of its answers.

    >>> [(b.queries, b.keys) for b in blocks([(3, 2)])]
    [(slice(0, 5, None), (slice(0, 5, None),))]
    """
    at = 0
    for sizes in trees:
        starts = [0, *accumulate(sizes)]  # of each piece, and the tree's end
        for start, stop in pieced(sizes):
            own = max(first for first in starts if first <= start)  # where the piece of the first query starts
            seen = [(0, stop)] if own <= sizes[0] else [(0, sizes[0]), (own, stop)]
            yield Block(slice(at + start, at + stop), tuple(slice(at + a, at + b) for a, b in seen))
        at += starts[-1]


def pieced(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where blocks start and stop: short pieces share one, long ones are cut evenly.

    >>> pieced([200, 10, 20])
    [(0, 100), (100, 200), (200, 230)]
    """
    found: list[tuple[int, int]] = []
    room = 0
    for start, size in zip(accumulate(sizes, initial=0), sizes):
        if found and size <= room:
            found[-1] = (found[-1][0], start + size)
            room -= size
            continue
        count = max(1, round(size / ROWS))
        cuts = [start + size * i // count for i in range(count + 1)]
        found.extend(pairwise(cuts))
        room = ROWS - (cuts[-1] - cuts[-2])
    return found


def attention(query: Tensor, key: Tensor, value: Tensor, masks: Sequence[tuple[Block, Tensor]], scale: Any) -> Tensor:
    """Attention `[1,s,h,d]` of queries `[1,h,s,d]`, keys and values `[1,h/g,s,d]`.

    Args:
        query: of all blocks.
        key: of all blocks.
        value: of all blocks.
        masks: the blocks, and what is added to the scores of each `[1,1,g*n,l]`.
        scale: of the scores; 1 / sqrt(d) where None.
    """
    return _Attention.apply(query, key, value, masks, scale)


def stacked(values: Tensor, rows: slice, heads: int) -> Tensor:
    """The heads of each group under each other: `[1,h,s,d] -> [1,h/g,g*n,d]`."""
    return values[:, :, rows].unflatten(1, (heads, -1)).flatten(2, 3)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, masks: Any, scale: Any) -> Tensor:
        _, h, s, d = query.shape
        heads = key.shape[1]
        out, sums = torch.empty(1, s, h, d, dtype=query.dtype), []
        for block, mask in masks:
            found, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                stacked(query, block.queries, heads), block.of(key), block.of(value), attn_mask=mask, scale=scale
            )
            out.transpose(1, 2)[:, :, block.queries] = found.unflatten(2, (h // heads, -1)).flatten(1, 2)
            sums.append(total)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.masks, ctx.scale = masks, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, out, *sums = ctx.saved_tensors
        heads, group = key.shape[1], query.shape[1] // key.shape[1]
        by_query, by_key, by_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (block, mask), total in zip(ctx.masks, sums, strict=True):
            given, q, o = (
                stacked(x, block.queries, heads) for x in (grads[0].transpose(1, 2), query, out.transpose(1, 2))
            )
            dq, *found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                given, q, block.of(key), block.of(value), o, total, 0.0, False, attn_mask=mask, scale=ctx.scale
            )
            by_query[:, :, block.queries] = dq.unflatten(2, (group, -1)).flatten(1, 2)
            for whole, part in zip((by_key, by_value), found, strict=True):
                for rows, own in zip(block.keys, part.split([b.stop - b.start for b in block.keys], 2), strict=True):
                    whole[:, :, rows] += own
        return by_query, by_key, by_value, None, None
