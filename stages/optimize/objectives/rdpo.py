"""rDPO: DPO's loss of the label minus that of the flipped label, so that noise of a known rate cancels on average."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs
from stages.parts import part
from stages.reduce import expected, log_ratio, pair_stats


@part(paper="arXiv 2403.00409", equation="the robust loss", needs=("reference",))
def rdpo(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    epsilon: Annotated[float, Field(ge=0, lt=0.5)] = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Robust Direct Preference Optimization.

        h = sum_t (logp - ref)          m = beta * (h_chosen - h_rejected)
        loss = ((1 - epsilon) * softplus(-m) - epsilon * softplus(m)) / (1 - 2 epsilon)

    Where every label is flipped with probability epsilon, its mean over the flips is DPO's loss of the clean label.
    With P(chosen preferred) = p the loss is its expectation over the label.

    Args:
        batch: pairs with reference log-probs; steps `[b,t]` in nats.
        beta: pull towards the reference, as DPO's. Paper: 0.1.
        epsilon: share of labels that are wrong, below 1/2; 0 is DPO. Too high is worse than too low: the variance grows
            with 1 / (1 - 2 epsilon)^2. Paper: the rate of the injected noise; TRL: 0.1.

    Returns:
        loss `[b]` in nats, log 2 at policy = reference, and TRL's statistics `[b]`. It has no lower bound: a large
        margin goes on to gain epsilon / (1 - 2 epsilon) a unit, so small data wants few epochs.

    Time is summed, not averaged: the implicit reward is that of the whole answer.

    Differences from the paper: none (soft labels are the expectation of its loss over the label).

    Example: m = 1 and epsilon = 0.25: (0.75 * 0.3133 - 0.25 * 1.3133) / 0.5 = -0.1867.

    >>> import torch
    >>> from stages.batches import Steps
    >>> zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> pairs = Pairs(Steps(torch.full((1, 1), 2.0), mask, ref=zero), Steps(zero, mask, ref=zero))
    >>> rdpo(pairs, beta=0.5, epsilon=0.25)[0]
    tensor([-0.1867])

    Source: Ray Chowdhury, Kini, Natarajan, Provably Robust DPO: Aligning Language Models with Noisy Feedback, ICML
    2024, arXiv 2403.00409.
    """
    chosen = beta * log_ratio(batch.chosen)  # [b]
    rejected = beta * log_ratio(batch.rejected)  # [b]
    m = chosen - rejected
    kept, turned = F.softplus(-m), F.softplus(m)  # DPO's loss of the label, and of its opposite
    right = ((1 - epsilon) * kept - epsilon * turned) / (1 - 2 * epsilon)
    wrong = ((1 - epsilon) * turned - epsilon * kept) / (1 - 2 * epsilon)
    return expected(batch.prob, right, wrong), pair_stats(batch, chosen, rejected)
