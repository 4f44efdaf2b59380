"""MODPO: DPO on the preferences of one objective, with a margin from the rewards of all others."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs
from stages.parts import part
from stages.reduce import expected, log_ratio, pair_stats


@part(paper="arXiv 2310.03708", equation="MODPO loss", needs=("reference", "scores"))
def modpo(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    weight: Annotated[float, Field(gt=0)] = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Multi-Objective Direct Preference Optimization.

        h = sum_t (logp - ref)      margin = sum over other objectives j of w_j * (r_j(chosen) - r_j(rejected))
        q = (beta * (h_chosen - h_rejected) - margin) / weight
        loss = -log sigmoid(q)

    With preferences that follow r_k the optimum is ref * exp((w_k * r_k + sum_j w_j * r_j) / beta) / Z: the policy pays
    for the other objectives first, and what is left must explain the preferences.

    Args:
        batch: pairs labelled by objective k, with reference log-probs and `margin` (pairing `aspect`), in the log-odds
            of preferences over the r_j; steps `[b,t]` in nats.
        beta: pull towards the reference, as DPO's. Paper: 0.1.
        weight: w_k of the objective that the pairs are labelled by. A small one blows up margin and gradient alike:
            label by another objective, or lower the learning rate. Paper: 0.1 to 0.9, the others' being 1 - w_k.

    Returns:
        loss `[b]` in nats, softplus(margin / weight) at policy = reference, and TRL's statistics `[b]`.

    Time is summed: the implicit reward is that of the whole answer.

    Differences from the paper: none (soft labels are the expectation of its loss over the label).

    Example: h_chosen = 2, h_rejected = 0, beta = 0.5, weight = 0.5, margin = 0.5: q = (1 - 0.5) / 0.5 = 1.

    >>> import torch
    >>> from stages.batches import Steps
    >>> zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> sides = Steps(torch.full((1, 1), 2.0), mask, ref=zero), Steps(zero, mask, ref=zero)
    >>> modpo(Pairs(*sides, margin=torch.tensor([0.5])), beta=0.5)[0]
    tensor([0.3133])

    Source: Zhou et al., Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization,
    Findings of ACL 2024, arXiv 2310.03708.
    """
    assert batch.margin is not None, "this batch has no margin"
    chosen = beta * log_ratio(batch.chosen)  # [b]
    rejected = beta * log_ratio(batch.rejected)  # [b]
    q = (chosen - rejected - batch.margin) / weight
    return expected(batch.prob, F.softplus(-q), F.softplus(q)), pair_stats(batch, chosen, rejected)
