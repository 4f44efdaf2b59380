"""Rows that grow by a token at a time, side by side: a `Layout` that owns their keys and values.

The keys of a prompt stand once for all rows that answer it; each row owns the keys of its answer. Attention is taken
over both apart, for a prompt with the queries of all its rows at once, and merged by the logsumexp of their scores:

    out = (e^a A + e^b B) / (e^a + e^b)        a, b: logsumexp of the scores of the two; A, B: their attention

Rows and prompts that have ended are replaced by the last ones, so that those that live are the first of the store and
no step copies it. It grows by `STEP` tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.policies.text.attention import Scores, scored
from stages.policies.text.packing import Trees

STEP = 64  # tokens by which a store grows
UNSEEN = -1e30  # added to the score of what may not be seen; finite, so that a row may see nothing of its prompt


class Prefill:
    """Prompts packed in one sequence: a `Layout` that keeps their keys and values."""

    def __init__(self, prompts: Sequence[Sequence[int]], device: torch.device | str) -> None:
        """The prompts one after the other."""
        self.sizes = [len(prompt) for prompt in prompts]
        self.trees = Trees(tuple((size,) for size in self.sizes))
        self.ids = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)  # [1,s]
        self.positions = torch.tensor([[i for size in self.sizes for i in range(size)]], device=device)  # [1,s]
        self.last = torch.tensor(self.sizes, device=device).cumsum(0) - 1  # [n] place of each prompt's last token
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}  # of each layer, [1,h,s,d]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """The attention of one layer, see `attention.Layout`."""
        self.kept[layer] = key, value
        return self.trees.attend(layer, query, key, value, scores)


class Store:
    """Keys and values of some sequences in each layer, `[capacity,h,length,d]`."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def reserve(self, layer: int, like: tuple[Tensor, Tensor], count: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, made larger where they have no room for so many sequences, or so long ones."""
        held = self.layers.get(layer)
        if held is None or held[0].shape[0] < count or held[0].shape[2] < length:
            n, t = (0, 0) if held is None else (held[0].shape[0], held[0].shape[2])
            count, length = max(count, n), max(-(-length // STEP) * STEP, t)
            grown = tuple(x.new_zeros(count, x.shape[1], length, x.shape[3]) for x in like)
            for old, new in zip(held or (), grown, strict=held is not None):
                new[:n, :, :t] = old
            self.layers[layer] = held = (grown[0], grown[1])
        return held

    def move(self, into: Tensor, source: Tensor) -> None:
        """Put some sequences in the places of others; one that the store has no place for has no keys yet."""
        for pair in self.layers.values():
            for held in pair:
                there = source < len(held)
                held[into[there]] = held[source[there]]


class Rows:
    """The rows that live, first to last; each answers one of the prompts."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self.prompts, self.answers = Store(), Store()
        self.lengths: list[int] = []  # of each prompt
        self.owners: list[int] = []  # the prompt of each row
        self.ages: list[int] = []  # tokens of its answer that were fed, of each row

    def prefilled(self, prefill: Prefill) -> None:
        """Take over the keys of prompts."""
        sizes, held = prefill.sizes, len(self.lengths)
        self.lengths.extend(sizes)
        for layer, pair in prefill.kept.items():
            stores = self.prompts.reserve(layer, pair, len(self.lengths), max(sizes))
            for store, packed in zip(stores, pair, strict=True):
                for place, own in enumerate(packed[0].split(sizes, 1), held):
                    store[place, :, : own.shape[1]] = own

    def start(self, owners: Sequence[int]) -> None:
        """New rows, after those that live."""
        self.owners.extend(owners)
        self.ages.extend(0 for _ in owners)

    def end(self, rows: Sequence[int]) -> list[int]:
        """Drop rows; says which row is now at each place."""
        order = self._move(self.answers, len(self.owners), rows)
        self.owners, self.ages = [self.owners[i] for i in order], [self.ages[i] for i in order]
        return order

    def forget(self, prompts: Sequence[int]) -> list[int]:
        """Drop prompts that no row answers any more; says which prompt is now at each place."""
        order = self._move(self.prompts, len(self.lengths), prompts)
        place = {old: new for new, old in enumerate(order)}
        self.lengths, self.owners = [self.lengths[i] for i in order], [place[owner] for owner in self.owners]
        return order

    def _move(self, store: Store, count: int, ended: Sequence[int]) -> list[int]:
        gone = set(ended)
        left = count - len(gone)
        into = [i for i in range(left) if i in gone]
        source = [i for i in range(left, count) if i not in gone]
        if into:
            store.move(torch.tensor(into, device=self.device), torch.tensor(source, device=self.device))
        order = list(range(left))
        for new, old in zip(into, source, strict=True):
            order[new] = old
        return order

    def step(self, count: int) -> Step:
        """The layout of one more token of the first rows."""
        now = Step(self, count)
        self.ages[:count] = [age + 1 for age in self.ages[:count]]
        return now


class Step:
    """One more token of each row: a `Layout`."""

    def __init__(self, rows: Rows, count: int) -> None:
        """Which rows answer which prompt, and where they write; the same in all layers.

        Args:
            rows: of which the first are fed.
            count: how many of them.
        """
        device, owners, ages = rows.device, rows.owners[:count], rows.ages[:count]
        self.rows, self.count = rows, count
        members: list[list[int]] = [[] for _ in rows.lengths]
        within = []
        for row, owner in enumerate(owners):
            within.append(len(members[owner]))
            members[owner].append(row)
        self.most = max(map(len, members))
        self.grid = torch.tensor([own + [0] * (self.most - len(own)) for own in members], device=device).flatten()
        self.back = torch.tensor([p * self.most + i for p, i in zip(owners, within, strict=True)], device=device)
        self.length, self.used = max(rows.lengths), max(ages) + 1
        self.lengths, self.ages = torch.tensor(rows.lengths, device=device), torch.tensor(ages, device=device)
        self.positions = (self.lengths[torch.tensor(owners, device=device)] + self.ages)[None]
        self._bias: dict[tuple[int | None, int], tuple[Tensor, Tensor]] = {}

    def bias(self, window: int | None, group: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to scores of prompts `[p,1,most*group,l]` (or 1 for all) and of answers `[b,1,1,t]`."""
        if (window, group) not in self._bias:
            place = torch.arange(self.length, device=like.device)
            own = torch.arange(self.used, device=like.device)
            hidden = (place >= self.lengths[:, None])[:, None]  # [p,1,l]
            hidden_own = own > self.ages[:, None]
            if window is not None:
                at = self.positions[0][self.grid].view(len(self.lengths), -1, 1)
                hidden = (hidden | (at - place >= window)).repeat_interleave(group, 1)
                hidden_own |= self.ages[:, None] - own >= window
            none = torch.zeros((), dtype=like.dtype, device=like.device)
            unseen = none + max(UNSEEN, torch.finfo(like.dtype).min / 2)
            self._bias[window, group] = (
                torch.where(hidden, unseen, none)[:, None],
                torch.where(hidden_own, unseen, none)[:, None, None],
            )
        return self._bias[window, group]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """The attention of one layer, see `attention.Layout`; the sequence is one token of each row."""
        heads = key.shape[1]
        queries = query[0].unflatten(0, (heads, -1)).permute(0, 2, 1, 3)  # [h,b,g,d]
        prompt_bias, own_bias = self.bias(scores.window, queries.shape[2], query)
        out, weight = self.answers(layer, queries, key, value, scores, own_bias)  # [b,h,g,d], [b,h,g]
        keys, values = (x[: len(self.lengths), :, : self.length] for x in self.rows.prompts.layers[layer])
        grouped = queries.index_select(1, self.grid).unflatten(1, (-1, self.most))  # [h,p,most,g,d]
        shape = grouped.shape[2:4]
        told, told_weight = attend(grouped.flatten(2, 3).transpose(0, 1), keys, values, prompt_bias, scores)
        told = told.unflatten(2, shape).transpose(1, 2).flatten(0, 1).index_select(0, self.back)
        told_weight = told_weight.unflatten(2, shape).transpose(1, 2).flatten(0, 1).index_select(0, self.back)
        share = torch.sigmoid(weight - told_weight)[..., None].to(out.dtype)
        return torch.lerp(told, out, share).flatten(1, 2)[None]

    def answers(
        self, layer: int, queries: Tensor, key: Tensor, value: Tensor, scores: Scores, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values, and attend over those of each row's answer."""
        store = self.rows.answers.reserve(layer, (key, value), len(self.rows.owners), self.used)
        places = torch.arange(self.count, device=key.device)
        seen = []
        for held, new in zip(store, (key, value), strict=True):
            held[places, :, self.ages] = new[0].transpose(0, 1)
            seen.append(held[: self.count, :, : self.used])
        return attend(queries.transpose(0, 1), seen[0], seen[1], bias, scores)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """Attention `[b,h,s,d]` of queries `[b,h,s,d]` over `[b,h,l,d]`, and the logsumexp `[b,h,s]` of its scores."""
    if scores.softcap is None and query.device.type == "cpu" and key.shape[-1] == value.shape[-1]:  # one kernel
        out: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias.expand(query.shape[0], 1, query.shape[2], -1), scale=scores.scale
        )
        return out[0], out[1]
    logits = scored(query, key, scores)
    logits = (logits + bias).float() if logits.dtype.itemsize < 4 else logits + bias
    total = logits.logsumexp(-1)
    return (logits - total[..., None]).exp().to(value.dtype) @ value, total
