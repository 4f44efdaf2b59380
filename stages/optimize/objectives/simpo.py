"""SimPO: the reward is the mean log-prob of a step, without a reference, and the winner must lead by a margin."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs
from stages.parts import part
from stages.reduce import average, expected, pair_stats


@part(paper="arXiv 2405.14734", equation="6")
def simpo(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 2.0,
    gamma: Annotated[float, Field(ge=0)] = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Simple Preference Optimization.

        a = mean_t logp                 m = beta * (a_chosen - a_rejected) - gamma
        loss = -log sigmoid(m)

    With P(chosen preferred) = p the loss is its expectation over the label; the margin is asked of either winner:
    `p * softplus(gamma - d) + (1 - p) * softplus(gamma + d)` with `d = beta * (a_chosen - a_rejected)`.

    Args:
        batch: pairs; steps `[b,t]` in nats.
        beta: scale of the mean log-prob. Paper: 2 to 10, far above DPO's since a mean is small.
        gamma: margin of the reward, absolute as in the paper's equation; the authors' code takes the ratio gamma/beta.
            Paper: ratios of 0.1 to 0.8, so 1 at beta = 2 is its Llama-3-Base setting of 0.5.

    Returns:
        loss `[b]` in nats, softplus(gamma) where both answers are equally likely, and TRL's statistics `[b]`.

    Time is averaged: the mean log-prob is what generation ranks by, and it does not reward length.

    Differences from the paper: none (soft labels are the expectation of its loss over the label). Smoothed labels and a
    likelihood of the winner, which the authors' code can add, are `cpo` with `length_normalize`.

    Example: a_chosen = -1, a_rejected = -2, beta = 2 and gamma = 1 give m = 1 and log(1 + e^-1) = 0.3133.

    >>> import torch
    >>> from stages.batches import Steps
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> pairs = Pairs(Steps(torch.tensor([[-0.5, -1.5]]), mask), Steps(torch.tensor([[-2.0, -2.0]]), mask))
    >>> simpo(pairs, beta=2.0, gamma=1.0)[0]
    tensor([0.3133])

    Source: Meng et al., SimPO: Simple Preference Optimization with a Reference-Free Reward, NeurIPS 2024,
    arXiv 2405.14734.
    """
    chosen = beta * average(batch.chosen.logp, batch.chosen.mask)  # [b]
    rejected = beta * average(batch.rejected.logp, batch.rejected.mask)  # [b]
    d = chosen - rejected
    loss = expected(batch.prob, F.softplus(gamma - d), F.softplus(gamma + d))
    return loss, pair_stats(batch, chosen, rejected)
