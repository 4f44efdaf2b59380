"""Beam search: the likeliest answers, by the sum of their log-probs, with those that have ended among them.

`likeliest` is the search itself, over whatever tells the logits of what may follow; `search` lets a text policy tell
them: one row a beam beside its prompt's own keys, or, where the model cannot be packed, every sequence anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.policies.text import head, plain
from stages.policies.text.decoding import Growing, grow, portions, prefill
from stages.policies.text.drawing import stream
from stages.policies.text.rows import Rows
from stages.records import Candidate, Prompt

if TYPE_CHECKING:
    from stages.policies.text.policy import TextPolicy

NONE = -1  # in the place of a token after the end
Advance = Callable[[Tensor, Tensor], Tensor]  # parents [n,b] and tokens [n,b] -> logits [n,b,v] of what follows them


@dataclass(frozen=True)
class Beams:
    """Answers to n prompts, b to each, the likeliest first; a beam that there is no answer for scores -inf."""

    tokens: Tensor  # [n,b,t], NONE after the end
    logps: Tensor  # [n,b,t], 0 after the end
    entropy: Tensor  # [n,b] sum over an answer's steps
    score: Tensor  # [n,b] sum of its log-probs
    over: Tensor  # [n,b] bool

    def followed(self, logits: Tensor, ends: Tensor) -> tuple[Beams, Tensor, Tensor]:
        """The best of all that follow, and of each its parent and its last token `[n,b]`; what is over stays as it is.

        Args:
            logits: `[n,b,v]` of the next token.
            ends: tokens that end an answer.
        """
        logp = logits.log_softmax(-1)
        further = torch.where(self.over[..., None], -torch.inf, self.score[..., None] + logp)
        further[..., 0] = torch.where(self.over, self.score, further[..., 0])  # it has one future: itself
        best = further.flatten(1).topk(self.score.shape[1])
        parent, token = best.indices // logp.shape[-1], best.indices % logp.shape[-1]
        was = self.over.gather(1, parent)
        taken = torch.where(was, 0.0, logp.flatten(1).gather(1, best.indices))
        spread = torch.where(was, 0.0, plain.entropy_of(logits).gather(1, parent))
        along = parent[..., None].expand(-1, -1, self.tokens.shape[-1])
        made = Beams(
            torch.cat([self.tokens.gather(1, along), torch.where(was, NONE, token)[..., None]], -1),
            torch.cat([self.logps.gather(1, along), taken[..., None]], -1),
            self.entropy.gather(1, parent) + spread,
            best.values,
            was | torch.isin(token, ends) | best.values.isneginf(),
        )
        return made, parent, token


def likeliest(first: Tensor, advance: Advance, *, beams: int, k: int, ends: Tensor, longest: int) -> Beams:
    """The k likeliest answers that a search with some beams finds, of each prompt.

    It stops where the k best are over: a log-prob is at most 0, so that nothing can overtake them.

    Args:
        first: logits `[n,v]` of the first token.
        advance: says what follows each beam once it is told which beam each one grew out of, and by which token.
        beams: kept side by side. 1 is greedy; with as many as there are answers but for their last token, it is exact.
        k: answers wanted, at most `beams`.
        ends: tokens that end an answer.
        longest: steps after which an answer is cut off.

    Example: tokens 0 (the end), 1 and 2; 1 is likelier at first, and 2 has the likelier future.

    >>> after = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.3, 0.3], [0.98, 0.01, 0.01]]).log()
    >>> first = torch.tensor([[0.01, 0.55, 0.44]]).log()
    >>> for beams in (1, 2):
    ...     found = likeliest(
    ...         first, lambda _, tokens: after[tokens], beams=beams, k=1, ends=torch.tensor([0]), longest=2
    ...     )
    ...     print(found.tokens.tolist(), found.score.exp())
    [[[1, 0]]] tensor([[0.2200]])
    [[[2, 0]]] tensor([[0.4312]])
    """
    n, start = len(first), torch.full((len(first), beams), -torch.inf, device=first.device, dtype=first.dtype)
    start[:, 0] = 0.0  # the others are no answers yet
    none = torch.zeros(n, beams, 0, device=first.device)
    found = Beams(none.long(), none.to(first), torch.zeros_like(start), start, start.isneginf())
    logits = first[:, None].expand(-1, beams, -1)
    for step in range(1, longest + 1):
        found, parent, token = found.followed(logits, ends)
        if step == longest or bool(found.over[:, :k].all()):
            break
        logits = advance(parent, token)
    kept = {name: value[:, :k] for name, value in vars(found).items()}
    return Beams(**kept)


@torch.no_grad()
def search(
    policy: TextPolicy, prompts: Sequence[Prompt], k: int, *, beams: int, max_new_tokens: int
) -> list[Candidate]:
    """The k likeliest answers of a text policy to each prompt, ordered by prompt, then likelihood.

    Prompts of like length are searched together, as many as the policy's slots hold beams for.
    """
    room = max(1, policy.max_length - max_new_tokens)
    asked = [policy.encode_prompt(prompt.messages)[-room:] for prompt in prompts]
    order = sorted(range(len(asked)), key=lambda i: -len(asked[i]))
    size, ends = max(1, policy.slots // beams), policy.end_tokens()
    rows: dict[int, list[Growing]] = {}
    for batch in (order[start : start + size] for start in range(0, len(order), size)):
        first, advance = _told(policy, [asked[i] for i in batch], beams)
        found = likeliest(first, advance, beams=beams, k=k, ends=ends, longest=max_new_tokens)
        rows.update(zip(batch, _rows(found, batch), strict=True))
    return [
        policy.candidate(f"{prompt.id}/{i}", prompt.id, row)
        for number, prompt in enumerate(prompts)
        for i, row in enumerate(rows[number])
    ]


def _told(policy: TextPolicy, prompts: Sequence[Sequence[int]], beams: int) -> tuple[Tensor, Advance]:
    """Logits `[n,v]` of the first token, and what says those of the next ones."""
    return (_packed if policy.packs() else _plain)(policy, prompts, beams)


def _packed(policy: TextPolicy, prompts: Sequence[Sequence[int]], beams: int) -> tuple[Tensor, Advance]:
    model, top, store = policy.causal, head.of(policy.causal), Rows(policy.device)
    states = [
        prefill(model, store, [prompts[i] for i in part]) for part in portions(range(len(prompts)), prompts)
    ]  # prompts stand in the store in their own order
    store.start([prompt for prompt in range(len(prompts)) for _ in range(beams)])

    def advance(parents: Tensor, tokens: Tensor) -> Tensor:
        rows = torch.arange(tokens.numel(), device=policy.device)
        store.answers.move(
            rows, (parents + torch.arange(len(parents), device=policy.device)[:, None] * beams).flatten()
        )
        return top.logits(grow(model, store, tokens.flatten().tolist())).unflatten(0, tokens.shape)

    return top.logits(torch.cat(states)), advance


def _plain(policy: TextPolicy, prompts: Sequence[Sequence[int]], beams: int) -> tuple[Tensor, Advance]:
    said: list[list[list[int]]] = [[[] for _ in range(beams)] for _ in prompts]

    def advance(parents: Tensor, tokens: Tensor) -> Tensor:
        for own, come, token in zip(said, parents.tolist(), tokens.tolist(), strict=True):
            own[:] = [[*own[parent], new] for parent, new in zip(come, token, strict=True)]
        rows = [[*prompt, *answer] for prompt, own in zip(prompts, said, strict=True) for answer in own]
        return plain.next_logits(policy.model, rows, policy.pad).unflatten(0, tokens.shape)

    return plain.next_logits(policy.model, prompts, policy.pad), advance


def _rows(found: Beams, prompts: Sequence[int]) -> Iterator[list[Growing]]:
    """The answers of each prompt as rows that have grown; a beam without an answer is left out."""
    told = zip(*(getattr(found, name).tolist() for name in ("tokens", "logps", "entropy", "score")), strict=True)
    for prompt, answers in zip(prompts, told, strict=True):
        kept = [(t, logps, s) for t, logps, s, score in zip(*answers, strict=True) if score > -torch.inf]
        sizes = [sum(token != NONE for token in tokens) for tokens, *_ in kept]
        yield [
            Growing(prompt, stream(0, ""), tokens[:size], logps[:size], spread)
            for (tokens, logps, spread), size in zip(kept, sizes, strict=True)
        ]
