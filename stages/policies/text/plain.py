"""The plain way to price and to sample: padded batches, all logits, autograd. The fast path's twin, and its fallback.

Rows are right-aligned, so that the logits of all answers are the last positions and no others are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stages.batches import Steps
from stages.policies.text.decoding import Asked, Growing, draw_of
from stages.policies.text.head import at_least_float
from stages.policies.text.packing import Row


def pad_left(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-align rows: token ids `[b,s]` and attention mask `[b,s]`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(list(row), dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def positions(attention: Tensor) -> Tensor:
    """Position of each token among the real tokens of its row: `[b,s]`."""
    return (attention.cumsum(-1) - 1).clamp(min=0)


def entropy_of(logits: Tensor) -> Tensor:
    """Entropy of each row's distribution in nats: `[b,v] -> [b]`."""
    return logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)


def log_probs(
    model: Any, rows: Sequence[Row], pad: int, *, entropy: bool = False, top_k: int = 0, hidden: bool = False
) -> Steps:
    """Log-probs `[b,t]` of the answers' tokens, left-aligned and differentiable, their mask, and what else is asked."""
    device = next(model.parameters()).device
    ids, attention = pad_left([[*prompt, *answer] for prompt, answer in rows], pad, device)
    lengths = torch.tensor([len(answer) for _, answer in rows], device=device)
    t = int(lengths.max())
    out = model(
        input_ids=ids,
        attention_mask=attention,
        position_ids=positions(attention),
        logits_to_keep=t + 1,
        use_cache=False,
        output_hidden_states=hidden,
    )
    logits = at_least_float(out.logits[:, :-1])  # [b,t,v]
    logp = logits.gather(-1, ids[:, -t:, None]).squeeze(-1) - logits.logsumexp(-1)  # [b,t], right-aligned
    left = (torch.arange(t, device=device) + t - lengths[:, None]).clamp(max=t - 1)  # where row i's step j sits
    mask = torch.arange(t, device=device) < lengths[:, None]
    spread = entropy_of(logits.detach()).gather(1, left) * mask if entropy else None
    top = None
    if top_k:
        top = logits.detach().softmax(-1).topk(min(top_k, logits.shape[-1])).values  # [b,t,k], right-aligned
        top = top.take_along_dim(left[..., None], 1) * mask[..., None]
    states = None
    if hidden:
        states = at_least_float(out.hidden_states[-1][:, -t - 1 : -1])  # [b,t,d], right-aligned
        states = states.take_along_dim(left[..., None], 1) * mask[..., None]
    return Steps(logp.gather(1, left) * mask, mask, entropy=spread, top=top, hidden=states)


def next_logits(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Logits `[b,v]` of the token after each prompt, float32."""
    ids, attention = pad_left(prompts, pad, next(model.parameters()).device)
    out = model(
        input_ids=ids, attention_mask=attention, position_ids=positions(attention), logits_to_keep=1, use_cache=False
    )
    return at_least_float(out.logits[:, -1])


@torch.no_grad()
def decode(
    model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[Growing], asked: Asked, slots: int, pad: int
) -> None:
    """Let every row grow to its end, in padded batches; see `decoding.decode`.

    It is transformers' own loop, which knows the cache of every model; we choose the tokens.
    """
    for start in range(0, len(rows), slots):
        batch = rows[start : start + slots]
        ids, attention = pad_left([prompts[row.prompt] for row in batch], pad, next(model.parameters()).device)
        ended = [False] * len(batch)

        def choose(_: Tensor, scores: Tensor, batch: Sequence[Growing] = batch, ended: list[bool] = ended) -> Tensor:
            drawn = draw_of(batch, scores, asked)
            told = zip(batch, ended, *(values.tolist() for values in drawn), strict=True)
            ended[:] = [over or row.take(*values, asked) for row, over, *values in told]
            return torch.full_like(scores, float("-inf")).scatter_(1, drawn.token[:, None], 0.0)

        model.generate(
            input_ids=ids,
            attention_mask=attention,
            logits_processor=[choose],
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=asked.max_new_tokens,
            eos_token_id=sorted(asked.ends),
            pad_token_id=pad,
        )
