"""PRDP: the difference of two log-ratios is regressed onto the difference of their rewards, within a trust region."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import average, better, differences, total


@part(
    paper="arXiv 2402.08714",
    equation="proximal loss, as its listing",
    needs=("reference", "behaviour"),
    online=True,
)
def prdp(
    batch: Groups,
    *,
    beta: Annotated[float, Field(gt=0)] = 3e-5,
    clip: Annotated[float, Field(gt=0)] = 1e-4,
    reduction: Literal["mean", "sum"] = "mean",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Proximal Reward Difference Prediction.

        h = mean_t (logp_t - ref_t)
        hc = mean_t clip(logp_t - ref_t, old_t - ref_t - clip, old_t - ref_t + clip)
        d = (h_a - h_b) - (r_a - r_b) / beta        dc the same of hc, for every a, b of a prompt with r_a > r_b
        loss = mean over those pairs of max(d^2, dc^2)

    Args:
        batch: groups of samples with rewards, reference and behaviour log-probs; steps `[g,k,t]` in nats.
        beta: pull towards the reference: at the optimum a reward of 1 is a difference of 1/beta. Its size follows the
            unit of h. Paper: 3e-6 to 3e-5 at the mean over 50 steps and 16,384 dimensions; 0.3 suits 64 dimensions.
        clip: how far a step may leave the behaviour policy and still be counted, in nats; infinite for no limit.
            Paper: 1e-6 to 1e-4; 1e-2 suits 64 dimensions.
        reduction: mean over steps, as the paper's listing, or their sum, as its derivation. T steps under `mean` at
            beta are under `sum` at beta / T, with the loss T^2 times as large.

    Returns:
        loss `[g]` in nats^2, an upper bound of the unclipped one, 0 where no two rewards differ; and statistics `[g]`:
        `rewards/margins`, the mean of beta * (h_a - h_b), which the loss pulls to r_a - r_b, and
        `rewards/accuracies`, the share of pairs in order (ties are one half, as is a group without pairs).

    Time is averaged or summed, see `reduction`; under `sum` the optimum is ref * exp(r / beta) / Z over whole
    trajectories, under `mean` ref * exp(T * r / beta) / Z.

    Differences from the paper: none. A constant added to the rewards of a prompt cancels, so that no baseline is
    needed.

    Example: h = (1, 0), r = (1, 0), beta = 0.5: d = 1 - 2 = -1. With clip = 0.25 around old = 0, dc = 0.25 - 2.

    >>> from stages.batches import Steps
    >>> mask, zero = torch.ones(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, 1)
    >>> scores = torch.tensor([[1.0, 0.0]])
    >>> group = Groups(Steps(scores[..., None], mask, ref=zero, old=zero), reward=scores, valid=mask[..., 0])
    >>> prdp(group, beta=0.5, clip=10.0)[0], prdp(group, beta=0.5, clip=0.25)[0]
    (tensor([1.]), tensor([3.0625]))

    Source: Deng et al., PRDP: Proximal Reward Difference Prediction for Large-Scale Reward Finetuning of Diffusion
    Models, CVPR 2024, arXiv 2402.08714.
    """
    steps = batch.steps
    assert steps.ref is not None, "this batch has no reference"
    assert steps.old is not None, "this batch has no behaviour log-probs"
    reduce = average if reduction == "mean" else total
    h = reduce(steps.logp - steps.ref, steps.mask)  # [g,k]
    hc = reduce(steps.old - steps.ref + (steps.logp - steps.old).clamp(-clip, clip), steps.mask)
    pairs = better(batch)  # [g,k,k]
    target = differences(torch.where(batch.valid, batch.reward, 0.0)) / beta
    d, dc = differences(h) - target, differences(hc) - target
    further = (differences(h) - differences(hc)) * (d + dc) > 0  # d^2 > dc^2, where 1/beta is too large to see it in d
    miss = torch.where(further, d**2, dc**2)
    gap = (beta * differences(h)).detach()
    order = 0.5 + 0.5 * average(gap.sign().flatten(-2), pairs.flatten(-2))
    stats = {"rewards/margins": average(gap.flatten(-2), pairs.flatten(-2)), "rewards/accuracies": order}
    return average(miss.flatten(-2), pairs.flatten(-2)), stats
