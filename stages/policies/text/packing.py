"""Dialogues packed without padding, each prompt once for all answers that share it.

What is priced is rows of (prompt, answer). The tokens of each distinct prompt stand once, followed by those of each of
its answers, tree after tree in one sequence `[1,s]`. The last token of an answer is predicted but predicts nothing, so
it does not stand there. An answer sees its prompt and itself, never its siblings; its positions go on from the prompt's
end. No layer sees padding, and attention costs little more than the real pairs of query and key cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stages.policies.text.attention import Scores, attend, band
from stages.policies.text.blocks import Block, attention, blocks

Row = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of an answer
Masked = tuple[Block, Tensor]


@dataclass(frozen=True)
class Packed:
    """Rows in one sequence, and where to read what it predicts."""

    ids: Tensor  # [1,s]
    positions: Tensor  # [1,s]
    trees: Trees
    source: Tensor  # [n] for each answer token, row after row: the position in the sequence that predicts it
    targets: Tensor  # [n] the answer tokens
    lengths: Tensor  # [b] answer tokens of each row

    def unpack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the answer tokens `[n]` as a batch `[b,t]`, left-aligned, with its mask."""
        t = int(self.lengths.max()) if len(self.lengths) else 0
        mask = torch.arange(t, device=values.device) < self.lengths[:, None]
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values), mask


@dataclass(frozen=True)
class Trees:
    """Which token of a packed sequence sees which: a `Layout`."""

    sizes: tuple[tuple[int, ...], ...]  # of each tree: tokens of its prompt, then of each of its answers
    _masks: dict[tuple[int | None, int, torch.dtype], list[Masked]] = field(default_factory=dict, repr=False)
    _blocks: dict[int | None, Any] = field(default_factory=dict, repr=False)  # FlexAttention's, by window

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """The attention of one layer, see `attention.Layout`."""
        if query.is_cuda:
            return self.at_once(query, key, value, scores)
        if scores.softcap is None and query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:
            masks = self.masks(query, scores.window, query.shape[1] // key.shape[1])
            return attention(query, key, value, masks, scores.scale)
        found = [
            attend(query[:, :, block.queries], block.of(key), block.of(value), mask, scores)
            for block, mask in self.masks(query, scores.window, 1)
        ]
        return torch.cat(found, 2).transpose(1, 2)

    def masks(self, query: Tensor, window: int | None, group: int) -> list[Masked]:
        """The blocks, the same in all layers, and what is added to the scores of each `[1,1,group*n,l]`."""
        name = (window, group, query.dtype)
        if name not in self._masks:
            sees, place = self.sees(window, query.device), torch.arange(query.shape[2], device=query.device)
            self._masks[name] = []
            for block in blocks(self.sizes):
                seen = sees(place[block.queries, None], torch.cat([place[each] for each in block.keys]))
                mask = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, float("-inf"))
                self._masks[name].append((block, mask.repeat(1, 1, group, 1)))
        return self._masks[name]

    def at_once(self, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """The same in one kernel, FlexAttention: blocks that nobody sees are skipped."""
        cap = scores.softcap

        def capped(score: Tensor, *index: Tensor) -> Tensor:
            return score if cap is None else cap * torch.tanh(score / cap)

        out = kernel(compiled=query.is_cuda)(
            query,
            key,
            value,
            score_mod=None if cap is None else capped,
            block_mask=self.blocks(scores.window, query.device),
            scale=scores.scale,
            enable_gqa=True,
        )
        return out.transpose(1, 2)

    def blocks(self, window: int | None, device: torch.device) -> Any:
        """FlexAttention's mask of the sequence; made once, the same in all layers."""
        from torch.nn.attention.flex_attention import create_block_mask

        if window not in self._blocks:
            sees, size = self.sees(window, device), sum(map(sum, self.sizes))
            self._blocks[window] = create_block_mask(
                lambda b, h, q, k: sees(q, k), None, None, size, size, device=str(device)
            )
        return self._blocks[window]

    def sees(self, window: int | None, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
        """Whether the token at one place of the sequence sees that at another; broadcasts."""
        owner, piece, at = (x.to(device) for x in self.places())

        def seen(q: Tensor, k: Tensor) -> Tensor:
            mine = (piece[q] == piece[k]) | (owner[q] == piece[k])  # of the same piece, or of its prompt
            return mine & band(at[q], at[k], window)

        return seen

    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token `[s]`: the piece of its prompt, its own piece, its position."""
        pieces: list[tuple[int, int, int]] = []
        for prompt, *answers in self.sizes:
            first = len(pieces)
            pieces += [(first, prompt, 0), *((first, answer, prompt) for answer in answers)]
        sizes = torch.tensor([size for _, size, _ in pieces])
        owner = torch.tensor([prompt for prompt, _, _ in pieces]).repeat_interleave(sizes)
        piece = torch.arange(len(pieces)).repeat_interleave(sizes)
        return owner, piece, torch.cat([torch.arange(size) + before for _, size, before in pieces])


@cache
def kernel(*, compiled: bool) -> Any:
    """FlexAttention; it is compiled once."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def pack(rows: Sequence[Row], device: torch.device | str = "cpu") -> Packed:
    """Pack rows; rows with equal prompts share it, wherever they stand.

    Args:
        rows: prompts of at least one token; an answer may be empty.
        device: where the tensors go.
    """
    trees: dict[tuple[int, ...], list[int]] = {}  # of each distinct prompt, its rows
    for i, (prompt, _) in enumerate(rows):
        trees.setdefault(tuple(prompt), []).append(i)
    ids: list[int] = []
    sizes: list[tuple[int, ...]] = []
    source: list[list[int]] = [[] for _ in rows]
    for prompt, members in trees.items():
        ids.extend(prompt)
        last = len(ids) - 1
        for i in members:
            answer = rows[i][1]
            source[i] = [last, *range(len(ids), len(ids) + len(answer) - 1)][: len(answer)]
            ids.extend(answer[:-1])
        sizes.append((len(prompt), *(len(rows[i][1]) - 1 for i in members if len(rows[i][1]) > 1)))
    held = Trees(tuple(sizes))
    return Packed(
        ids=torch.tensor(ids, device=device)[None],
        positions=held.places()[2].to(device)[None],
        trees=held,
        source=torch.tensor([place for row in source for place in row], dtype=torch.long, device=device),
        targets=torch.tensor([token for _, answer in rows for token in answer], dtype=torch.long, device=device),
        lengths=torch.tensor([len(answer) for _, answer in rows], device=device),
    )
