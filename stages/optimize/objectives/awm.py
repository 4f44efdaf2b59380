"""AWM: the policy gradient whose log-prob is the pretraining loss on the clean sample, not that of a noisy step."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import advantages, average, clipped, drift, drift_stats


@part(
    paper="arXiv 2509.25050",
    equation="AWM loss, as the authors' code",
    families=("image", "tabular"),
    needs=("behaviour", "advantage", "kl"),
    online=True,
)
def awm(
    batch: Groups,
    *,
    clip: Annotated[float, Field(gt=0)] = 1.0,
    beta: Annotated[float, Field(ge=0)] = 0.005,
    ratio: Literal["exp_first", "sum_first"] = "exp_first",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Advantage Weighted Matching.

        logp_j = -W(m_j, s_j)           m_j: mean squared error of the prediction at noise level s_j, j = 1..J
        rho_j = exp(logp_j - old_j)     exp_first
        rho = exp(mean_j (logp_j - old_j))          sum_first, one for all levels
        loss = mean_j max(-A * rho, -A * clip(rho, 1 - clip, 1 + clip)) + beta * mean_j kl_j

    Args:
        batch: groups with advantages; steps `[g,k,t]` are the J levels, `logp` and `old` taken at the same levels and
            noises, `kl` the mean squared difference of the two predictions at each.
        clip: how far a ratio may go and still be counted. Paper: 1.
        beta: pull towards the reference. Paper: 0.001 (GenEval), 0.003 (text rendering) beside advantages in [-1, 1].
            Those of part `group` lie in [-5, 5], which makes it 0.005 and 0.015 here.
        ratio: exp_first clips each level by itself; sum_first clips the sample as a whole.

    Returns:
        loss `[g,k]`, -A at policy = behaviour = reference, 0 for absent members; and statistics `[g]`: `kl`,
        `clip_ratio`, the share of ratios outside the clip range, and `approx_kl`, mean of (logp - old)^2 / 2.

    Time is averaged: the levels are draws of one expectation. Their log-prob is a surrogate and no likelihood; how a
    level is weighed and chosen is the image policy's: its `weight` names W, and `half` is -m / 2, the square root of
    the paper's ratio.

    Differences from the paper:
        1. Advantages are not divided by their limit of 5. Beside a beta 5 times as large the loss is 5 times the
           paper's, the same for any optimizer that scales steps by itself.
        2. The second divergence, to a moving average of the policy, is that of any objective with a `kl`:
           `optimize.online.ema_beta` adds its mean over the levels. Paper: 1, which is 5 here for the reason above. The
           average lags by a thousandth of an update after the first one and by 0.43 of one from 300 on, so that in a
           short run it hardly pulls.

    Example: two levels with ratios 2 and 1/2 average to 1.25 before the clip of 1 and multiply to 1 after.

    >>> from stages.batches import Steps
    >>> mask, zero = torch.ones(1, 1, 2, dtype=torch.bool), torch.zeros(1, 1, 2)
    >>> steps = Steps(torch.tensor([[[2.0, 0.5]]]).log(), mask, old=zero, kl=zero)
    >>> group = Groups(steps, reward=zero[..., 0], valid=mask[..., 0], advantage=torch.ones(1, 1))
    >>> awm(group)[0], awm(group, ratio="sum_first")[0]
    (tensor([[-1.2500]]), tensor([[-1.]]))

    Source: Xue et al., Advantage Weighted Matching: Aligning RL with Pretraining in Diffusion Models, 2025,
    arXiv 2509.25050.
    """
    assert batch.steps.kl is not None, "this batch has no divergence from the reference"
    mask, log_ratio = batch.steps.mask, drift(batch.steps)  # [g,k,t]
    if ratio == "sum_first":
        log_ratio = average(log_ratio, mask)[..., None].expand_as(mask)
    loss = average(clipped(log_ratio, advantages(batch), clip, clip), mask) + beta * average(batch.steps.kl, mask)
    there = (mask & batch.valid[..., None]).flatten(-2)
    kl = average(batch.steps.kl.detach().flatten(-2), there)
    return torch.where(batch.valid, loss, 0.0), {"kl": kl, **drift_stats(batch, log_ratio, clip, clip)}
