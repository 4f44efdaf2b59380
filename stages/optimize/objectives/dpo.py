"""DPO: the implicit reward beta * log(policy / reference) inside a Bradley-Terry likelihood."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs, Steps
from stages.parts import part
from stages.reduce import average, expected, log_ratio, pair_stats, total


@part(paper="arXiv 2305.18290", equation="7", needs=("reference",))
def dpo(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    clip: Annotated[float, Field(gt=0, lt=1)] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct Preference Optimization.

        h = sum_t (logp - ref)          m = beta * (h_chosen - h_rejected)
        loss = -log sigmoid(m)

    With P(chosen preferred) = p, or a label flipped with probability `label_smoothing` = e (conservative DPO), the
    loss is `q * softplus(-m) + (1 - q) * softplus(m)` with `q = p * (1 - e) + (1 - p) * e`. With `clip` = c, as in
    D3PO's code, every logp - ref in the loss is first cut to [log(1 - c), log(1 + c)].

    Args:
        batch: pairs with reference log-probs; steps `[b,t]` in nats.
        beta: pull towards the reference: an implicit reward of 1 is a log-ratio of 1/beta nats. Paper: 0.1 to 0.5.
        label_smoothing: probability that a label is wrong, at most 0.5. Paper: 0.
        clip: how far the ratio of a step to the reference may go and still be counted, on either side; a step beyond
            has no gradient, not even one that leads back. None counts all. D3PO's code: 0.1, of steps that are priced
            by the mean over the dimensions of the latent.

    Returns:
        loss `[b]` in nats, log 2 at policy = reference, and TRL's statistics `[b]`, whose rewards are not cut; with a
        clip `clip_ratio` too, the share of steps beyond it.

    Time is summed, not averaged: the implicit reward is that of the whole answer.

    Differences from the paper: none (soft labels are the expectation of its loss over the label).

    Example: with h_chosen = 2, h_rejected = 0 and beta = 0.5, m = 1 and the loss is log(1 + e^-1) = 0.3133.

    >>> from stages.batches import Steps
    >>> zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> pairs = Pairs(Steps(torch.full((1, 1), 2.0), mask, ref=zero), Steps(zero, mask, ref=zero))
    >>> dpo(pairs, beta=0.5)[0]
    tensor([0.3133])

    Source: Rafailov et al., Direct Preference Optimization, NeurIPS 2023, arXiv 2305.18290.
    """
    chosen = beta * log_ratio(batch.chosen)  # [b]
    rejected = beta * log_ratio(batch.rejected)  # [b]
    m, stats = chosen - rejected, pair_stats(batch, chosen, rejected)
    if clip is not None:
        sides = [_cut(side, clip) for side in (batch.chosen, batch.rejected)]
        m = beta * (sides[0][0] - sides[1][0])
        stats["clip_ratio"] = (sides[0][1] + sides[1][1]) / 2
    p = torch.ones_like(m) if batch.prob is None else batch.prob
    q = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    loss = expected(q, F.softplus(-m), F.softplus(m))
    return loss, stats


def _cut(steps: Steps, clip: float) -> tuple[Tensor, Tensor]:
    """The sum of the log-ratios of steps, each cut to its limits, and the share of them that lay beyond: `[b]` each."""
    assert steps.ref is not None, "this batch has no reference"
    h, low, high = steps.logp - steps.ref, math.log1p(-clip), math.log1p(clip)
    beyond = ((h < low) | (h > high)).to(h.dtype)
    return total(h.clamp(low, high), steps.mask), average(beyond, steps.mask)
