"""Continuous batching: at most `slots` rows grow side by side, and rows that wait take the places of those that end.

Rows wait in the order of their prompts' lengths, longest first: prompts that are alive together are of like length, so
that little of their store is padding, and the most memory is taken at the start, where a lack of it costs least. A
prompt is prefilled when its first row starts, with others in one packed sequence, and forgotten when its last row ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stages.policies.text import head
from stages.policies.text.attention import Layout
from stages.policies.text.drawing import Drawn, draw, noise, stream
from stages.policies.text.rows import Prefill, Rows

PREFILLED = 4096  # prompt tokens in one pass
REFILL = 8  # an eighth of the slots is free before rows that wait take them


@dataclass(frozen=True)
class Asked:
    """How rows are drawn."""

    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int
    ends: frozenset[int]  # tokens that end a row


@dataclass
class Growing:
    """A row and what it has become."""

    prompt: int  # which of the prompts
    stream: torch.Generator
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    entropy: float | None = 0.0  # sum over its tokens, where it is known

    def take(self, token: int, logp: float, entropy: float, asked: Asked) -> bool:
        """Append a token; says whether the row has ended."""
        self.tokens.append(token)
        self.logps.append(logp)
        self.entropy = (self.entropy or 0.0) + entropy
        return token in asked.ends or len(self.tokens) == asked.max_new_tokens


def rows_of(names: Sequence[str], k: int, seed: int) -> list[Growing]:
    """A row for each name; k of them answer each prompt."""
    return [Growing(i // k, stream(seed, name)) for i, name in enumerate(names)]


def draw_of(rows: Sequence[Growing], logits: Tensor, asked: Asked) -> Drawn:
    """Draw the next token of each row by its own stream."""
    random = noise([row.stream for row in rows], logits.shape[-1], logits.device) if asked.temperature else None
    return draw(logits, random, asked.temperature, asked.top_p)


@torch.no_grad()
def decode(model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[Growing], asked: Asked, slots: int) -> None:
    """Let every row grow to its end.

    Args:
        model: a causal language model whose attention is `attention.install`ed.
        prompts: token ids.
        rows: what is filled in.
        asked: how to draw.
        slots: rows side by side.
    """
    device = next(model.parameters()).device
    waiting = sorted(rows, key=lambda row: -len(prompts[row.prompt]))[::-1]  # the next one last
    left = [0] * len(prompts)  # rows of each prompt that have not ended
    for row in rows:
        left[row.prompt] += 1
    live: list[Growing] = []
    known: list[int] = []  # prompts in the store
    states: dict[int, Tensor] = {}  # what each of them predicts its first token from
    store, top = Rows(device), head.of(model)
    while live or waiting:
        grown = len(live)
        hidden = [grow(model, store, [row.tokens[-1] for row in live])] if live else []
        if waiting and (not live or REFILL * (slots - grown) >= slots):
            fresh = [waiting.pop() for _ in range(min(slots - grown, len(waiting)))]
            new = [prompt for prompt in dict.fromkeys(row.prompt for row in fresh) if prompt not in states]
            for batch in portions(new, prompts):
                found = prefill(model, store, [prompts[i] for i in batch])
                states.update(zip(batch, found, strict=True))
                known.extend(batch)
            store.start([known.index(row.prompt) for row in fresh])
            hidden.append(torch.stack([states[row.prompt] for row in fresh]))
            live.extend(fresh)
        drawn = draw_of(live, top.logits(torch.cat(hidden)), asked)
        told = zip(live, *(values.tolist() for values in drawn), strict=True)
        ended = [i for i, (row, *values) in enumerate(told) if row.take(*values, asked)]
        if ended:
            for i in ended:
                left[live[i].prompt] -= 1
            live = [live[i] for i in store.end(ended)]
            done = [i for i, prompt in enumerate(known) if not left[prompt]]
            for i in done:
                del states[known[i]]
            known = [known[i] for i in store.forget(done)]


def grow(model: Any, store: Rows, tokens: list[int]) -> Tensor:
    """Feed each row its last token: last hidden states `[b,d]`."""
    step = store.step(len(tokens))
    return states_of(model, torch.tensor([tokens], device=store.device), step.positions, step)


def prefill(model: Any, store: Rows, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Read prompts into the store: the last hidden state of each `[n,d]`."""
    layout = Prefill(prompts, store.device)
    found = states_of(model, layout.ids, layout.positions, layout)[layout.last]
    store.prefilled(layout)
    return found


def states_of(model: Any, ids: Tensor, positions: Tensor, layout: Layout) -> Tensor:
    """Last hidden states `[s,d]` of a packed sequence `[1,s]` under a layout."""
    out = model.get_decoder()(
        input_ids=ids,
        position_ids=positions,
        attention_mask=torch.zeros(1, 1, 1, 1, device=ids.device),  # of four axes: theirs is not made
        layout=layout,
        use_cache=False,
    )
    return out.last_hidden_state[0]


def portions(chosen: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Prompts that are prefilled together."""
    found: list[list[int]] = []
    tokens = PREFILLED
    for i in chosen:
        if tokens + len(prompts[i]) > PREFILLED:
            found.append([])
            tokens = 0
        found[-1].append(i)
        tokens += len(prompts[i])
    return found
