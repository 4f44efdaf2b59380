"""Dialogues packed without padding, each prompt once for all answers that share it.

What is priced is rows of (prompt, answer). The tokens of each distinct prompt stand once, then those of each answer,
all in one sequence `[1,s]`. The last token of an answer is predicted but predicts nothing, so it does not stand there.
An answer sees its prompt and itself, never its siblings; its positions go on from the prompt's end. No layer sees
padding, and attention costs what the real pairs of query and key cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from stages.policies.text.attention import Scores, attend, band

Row = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt and of an answer


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

    prompts: tuple[int, ...]  # tokens of each prompt, in the order of the sequence
    answers: tuple[tuple[int, int], ...]  # (index of its prompt, tokens) of each answer, after all prompts
    _masks: dict[tuple[int, int, int | None, torch.dtype], Tensor] = field(default_factory=dict, repr=False)
    _blocks: dict[int | None, Any] = field(default_factory=dict, repr=False)  # FlexAttention's, by window

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """The attention of one layer, see `attention.Layout`."""
        if query.is_cuda:
            return self.at_once(query, key, value, scores)
        sizes = [*self.prompts, *(size for _, size in self.answers)]
        q, k, v = (x.split(sizes, 2) for x in (query, key, value))
        found = [attend(q[i], k[i], v[i], self.mask(q[i], 0, scores.window), scores) for i in range(len(self.prompts))]
        for i, (prompt, _) in enumerate(self.answers, len(self.prompts)):
            keys, values = torch.cat([k[prompt], k[i]], 2), torch.cat([v[prompt], v[i]], 2)
            found.append(attend(q[i], keys, values, self.mask(q[i], self.prompts[prompt], scores.window), scores))
        return torch.cat(found, 2).transpose(1, 2)

    def mask(self, query: Tensor, before: int, window: int | None) -> Tensor:
        """What queries after `before` tokens may see of those and of themselves, added to scores: `[1,1,a,before+a]`.

        The masks of a batch are the same in all layers.
        """
        name = (before, query.shape[2], window, query.dtype)
        if name not in self._masks:
            at = torch.arange(before + query.shape[2], device=query.device)
            seen = band(at[before:, None], at, window)[None, None]
            self._masks[name] = torch.zeros_like(seen, dtype=query.dtype).masked_fill(~seen, float("-inf"))
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
            owner, piece, at = (x.to(device) for x in self.places())

            def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
                mine = (piece[q] == piece[k]) | (owner[q] == piece[k])  # of the same piece, or of its prompt
                return mine & band(at[q], at[k], window)

            self._blocks[window] = create_block_mask(seen, None, None, len(at), len(at), device=str(device))
        return self._blocks[window]

    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token `[s]`: the piece of its prompt, its own piece, its position."""
        pieces = [(i, size, 0) for i, size in enumerate(self.prompts)]
        pieces += [(prompt, size, self.prompts[prompt]) for prompt, size in self.answers]
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
    ids: list[int] = []
    prompts: dict[tuple[int, ...], int] = {}  # each distinct one, and where its last token stands
    for prompt, _ in rows:
        if tuple(prompt) not in prompts:
            ids.extend(prompt)
            prompts[tuple(prompt)] = len(ids) - 1
    index = {prompt: i for i, prompt in enumerate(prompts)}
    source: list[int] = []
    targets: list[int] = []
    answers: list[tuple[int, int]] = []
    for prompt, answer in rows:
        source.extend([prompts[tuple(prompt)], *range(len(ids), len(ids) + len(answer) - 1)][: len(answer)])
        targets.extend(answer)
        if len(answer) > 1:
            answers.append((index[tuple(prompt)], len(answer) - 1))
            ids.extend(answer[:-1])
    trees = Trees(tuple(map(len, prompts)), tuple(answers))
    return Packed(
        ids=torch.tensor(ids, device=device)[None],
        positions=trees.places()[2].to(device)[None],
        trees=trees,
        source=torch.tensor(source, dtype=torch.long, device=device),
        targets=torch.tensor(targets, dtype=torch.long, device=device),
        lengths=torch.tensor([len(answer) for _, answer in rows], device=device),
    )
