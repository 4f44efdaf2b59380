"""RankDPO: DPO on all pairs of a ranked group, each weighed by what swapping the two would cost in DCG."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import average, better, differences, log_ratio, total


@part(paper="arXiv 2410.18013", equation="RankDPO loss, ranks from preference scores", needs=("reference",))
def rankdpo(
    batch: Groups,
    *,
    beta: Annotated[float, Field(gt=0)] = 5000.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Ranked Preference Optimization.

        h = sum_t (logp - ref)          phi = reward, in [0, 1]         tau = rank by phi, 1 is the best
        Delta_ij = |2^phi_i - 2^phi_j| * |1 / log(1 + tau_i) - 1 / log(1 + tau_j)|
        loss = sum over pairs with phi_i > phi_j of  -Delta_ij * log sigmoid(beta * (h_i - h_j))

    Args:
        batch: groups with reference log-probs, `reward` the share of won comparisons phi (pairing `ranking`). Steps
            `[g,k,t]` in nats; the members of a group should share timestep and noise, or noise drowns h_i - h_j.
        beta: pull towards the reference, as DPO's. The paper's s is a difference of squared errors, the image policy's
            log-prob (weight `half`) minus half of one: h = -s / 2, and this beta is twice the paper's. Paper: not
            told; 5000 is Diffusion-DPO's for SDXL in the units used here, and text wants DPO's 0.1.

    Returns:
        loss `[g]` in nats, log 2 * sum of Delta at policy = reference, 0 where no two members differ; and statistics
        `[g]`: `rewards/margins`, the mean of beta * (h_i - h_j), `rewards/accuracies`, the share of pairs in order
        (ties are one half, as is a group without pairs), `delta`, the sum of the weights.

    Time is summed: the implicit reward is that of the whole answer. An image has one step, its noise level.

    Differences from the paper: members with the same phi share the mean of their ranks, so that their order on file
    does not matter; their own Delta is 0 by its first factor. The printed sum runs over i > j; with rank 1 the best,
    only i before j makes two members DPO.

    Example: two members, phi = (1, 0): Delta = 1 * (1 / log 2 - 1 / log 3) = 0.5325, times log 2 at the reference.

    >>> from stages.batches import Steps
    >>> mask, zero = torch.ones(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, 1)
    >>> rankdpo(Groups(Steps(zero, mask, ref=zero), reward=torch.tensor([[1.0, 0.0]]), valid=mask[..., 0]))[0]
    tensor([0.3691])

    Source: Karthik et al., Scalable Ranked Preference Optimization for Text-to-Image Generation, ICCV 2025,
    arXiv 2410.18013.
    """
    pairs = better(batch)  # [g,k,k]
    delta = torch.where(pairs, dcg_swaps(batch.reward, batch.valid, pairs), 0.0)
    m = beta * differences(log_ratio(batch.steps))  # [g,k,k]
    loss = total((delta * F.softplus(-m)).flatten(-2), pairs.flatten(-2))
    order = 0.5 + 0.5 * average(m.detach().sign().flatten(-2), pairs.flatten(-2))
    margins = average(m.detach().flatten(-2), pairs.flatten(-2))
    return loss, {"rewards/margins": margins, "rewards/accuracies": order, "delta": delta.sum((-2, -1))}


def dcg_swaps(phi: Tensor, valid: Tensor, pairs: Tensor) -> Tensor:
    """How much swapping two members changes the discounted cumulative gain: `[g,k] -> [g,k,k]`.

    >>> phi, valid = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    >>> dcg_swaps(phi, valid, phi[:, :, None] > phi[:, None, :])
    tensor([[[0.0000, 0.5325],
             [0.5325, 0.0000]]])
    """
    gain = torch.exp2(torch.where(valid, phi, 0.0)) - 1
    above = pairs.sum(-2).to(phi.dtype)  # [g,k] members better than this one
    below = pairs.sum(-1).to(phi.dtype)
    level = valid.sum(-1, keepdim=True) - above - below  # members with its phi, itself included
    rank = 1 + above + (level - 1) / 2
    discount = 1 / torch.log1p(torch.where(valid, rank, 1.0))
    return differences(gain).abs() * differences(discount).abs()
