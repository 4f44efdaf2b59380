"""DPO-gamma: DPO with the reference's own ranking of the pair counted in part, from not at all to fully and beyond."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs, Steps
from stages.parts import part
from stages.reduce import expected, pair_stats, total


@part(paper="arXiv 2405.19534", equation="the DPO-gamma loss", needs=("reference",), idle=(("reference", "gamma"),))
def dpo_gamma(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    gamma: Annotated[float, Field(ge=0)] = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct Preference Optimization with a scaled reference.

        L = sum_t logp          R = sum_t ref
        m = beta * ((L_chosen - L_rejected) - gamma * (R_chosen - R_rejected))
        loss = -log sigmoid(m)

    DPO asks the policy to beat the reference's log-ratio, so a pair that the reference ranks wrong may be learnt well
    and stay ranked wrong. A gamma below 1 asks for that much less of the way to be made good relative to the
    reference and more in absolute likelihood.

    Args:
        batch: pairs with reference log-probs (none where gamma is 0); steps `[b,t]` in nats.
        beta: sharpness, as DPO's. Paper: 0.1.
        gamma: how much the reference counts; 1 is DPO, 0 needs no reference. Paper: 0 to 2 in steps of 0.25.

    Returns:
        loss `[b]` in nats, and TRL's statistics `[b]` with rewards beta * (L - gamma * R).

    Time is summed, not averaged: what is ranked is the likelihood of whole answers.

    Differences from the paper: none (soft labels are the expectation of its loss over the label).

    Example: L = -2 and -3, R = -4 and -2, beta = 1, gamma = 0.5: m = 1 - 0.5 * -2 = 2, the loss is log(1 + e^-2).

    >>> import torch
    >>> from stages.batches import Steps
    >>> one, mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> pairs = Pairs(Steps(-2 * one, mask, ref=-4 * one), Steps(-3 * one, mask, ref=-2 * one))
    >>> dpo_gamma(pairs, beta=1.0, gamma=0.5)[0]
    tensor([0.1269])

    Source: Chen et al., Preference Learning Algorithms Do Not Learn Preference Rankings, NeurIPS 2024,
    arXiv 2405.19534.
    """
    chosen, rejected = (beta * _held(side, gamma) for side in (batch.chosen, batch.rejected))  # [b]
    m = chosen - rejected
    return expected(batch.prob, F.softplus(-m), F.softplus(m)), pair_stats(batch, chosen, rejected)


def _held(steps: Steps, gamma: float) -> Tensor:
    """L - gamma * R of one side: `[b]`."""
    if gamma == 0:
        return total(steps.logp, steps.mask)
    assert steps.ref is not None, "this batch has no reference"
    return total(steps.logp - gamma * steps.ref, steps.mask)
