"""Flow-GRPO: the clipped policy gradient over the steps of a flow's SDE, with their exact KL to the reference."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import advantages, average, clipped, drift, drift_stats


@part(
    paper="arXiv 2505.05470",
    equation="clipped objective with exact step KL",
    families=("image", "tabular"),
    needs=("behaviour", "advantage", "kl"),
    online=True,
)
def flow_grpo(
    batch: Groups,
    *,
    clip: Annotated[float, Field(gt=0)] = 1e-4,
    beta: Annotated[float, Field(ge=0)] = 0.04,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Group Relative Policy Optimization of a flow-matching model.

        rho_t = exp(logp_t - old_t)
        loss = mean_t [ max(-A * rho_t, -A * clip(rho_t, 1 - clip, 1 + clip)) + beta * kl_t ]

    Args:
        batch: groups with behaviour log-probs, advantages and `kl`, the exact divergence of each step's distribution
            from the reference's; steps `[g,k,t]` in nats, the mean over the dimensions of the latent.
        clip: how far a ratio may go and still be counted, in units of the mean over dimensions: 1e-4 at the paper's
            latents, 1e-2 at 64 dimensions. Authors' code: 1e-4.
        beta: pull towards the reference. Paper: 0.04 (GenEval, text rendering), 0.01 (PickScore), 0 leaves it out.

    Returns:
        loss `[g,k]`, -A at policy = behaviour = reference, 0 for absent members; and statistics `[g]`: `kl`,
        `clip_ratio`, the share of steps outside the clip range, and `approx_kl`, mean of log(rho)^2 / 2.

    Time is averaged over the steps in the mask: the last step of the SDE has no noise and is masked by the policy.

    Differences from the paper:
        1. kl is the divergence of the two Gaussians. The authors' code leaves the step size out of its denominator,
           which makes its beta weaker by a factor of about the number of steps.
        2. A group whose rewards are all equal stays in the mean with a loss of beta * kl; their code drops it, as
           `optimize.online.ties: drop` does for any objective that learns from samples.

    Example: at rho = 1 a step costs -A, and beta = 0.5 adds half of its kl.

    >>> from stages.batches import Steps
    >>> mask, zero = torch.ones(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, 1)
    >>> group = Groups(Steps(zero, mask, old=zero, kl=zero + 0.2), reward=zero[..., 0], valid=mask[..., 0],
    ...                advantage=torch.tensor([[1.0, -1.0]]))
    >>> flow_grpo(group, beta=0.5)[0]
    tensor([[-0.9000,  1.1000]])

    Source: Liu et al., Flow-GRPO: Training Flow Matching Models via Online RL, 2025, arXiv 2505.05470.
    """
    assert batch.steps.kl is not None, "this batch has no divergence from the reference"
    mask, log_ratio = batch.steps.mask, drift(batch.steps)  # [g,k,t]
    gain = clipped(log_ratio, advantages(batch), clip, clip)
    loss = average(gain, mask) + beta * average(batch.steps.kl, mask)  # [g,k]
    there = (mask & batch.valid[..., None]).flatten(-2)
    kl = average(batch.steps.kl.detach().flatten(-2), there)
    return torch.where(batch.valid, loss, 0.0), {"kl": kl, **drift_stats(batch, log_ratio, clip, clip)}
