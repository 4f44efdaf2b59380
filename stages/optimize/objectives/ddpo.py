"""DDPO: every denoising step is an action, and the image's advantage weighs its clipped importance ratio."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import advantages, average, clipped, drift, drift_stats


@part(paper="arXiv 2305.13301", equation="DDPO-IS, DDPO-SF", needs=("behaviour", "advantage"), online=True)
def ddpo(
    batch: Groups,
    *,
    clip: Annotated[float, Field(gt=0)] = 1e-4,
    form: Literal["importance", "score"] = "importance",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Denoising Diffusion Policy Optimization.

        rho_t = exp(logp_t - old_t)
        loss = mean_t max(-A * rho_t, -A * clip(rho_t, 1 - clip, 1 + clip))        form importance
        loss = mean_t -A * logp_t                                                  form score

    Args:
        batch: groups with behaviour log-probs and advantages; steps `[g,k,t]` in nats, the mean over the dimensions of
            the latent where the policy is an image policy. Advantages are `[g,k]`, or `[g,k,t]`.
        clip: how far a ratio may go and still be counted; form score has no ratio and does not use it. It is in units
            of the mean over dimensions: 1e-4 at the paper's 16,384, 1e-2 at 64. Authors' code: 1e-4.
        form: importance (DDPO-IS) allows several updates on the same samples; score (DDPO-SF) is right for the first
            update only, while the policy is its own behaviour.

    Returns:
        loss `[g,k]`, -A at policy = behaviour (form importance), 0 for absent members; and statistics `[g]`:
        `clip_ratio`, the share of steps outside the clip range, and `approx_kl`, mean of log(rho)^2 / 2.

    Time is averaged over the steps in the mask: a step without noise has no log-prob and is masked by the policy.

    Differences from the paper: none in the loss. Advantages are made beside it (part `group`) out of the samples at
    hand; the authors' code keeps a buffer of the last rewards of each prompt.

    Example: rho = 1.5 at A = 1 counts as 1.2 at most; at A = -1 it counts in full.

    >>> import torch
    >>> from stages.batches import Steps
    >>> mask, zero = torch.ones(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, 1)
    >>> steps = Steps(zero + torch.tensor(1.5).log(), mask, old=zero)
    >>> group = Groups(steps, reward=zero[..., 0], valid=mask[..., 0], advantage=torch.tensor([[1.0, -1.0]]))
    >>> ddpo(group, clip=0.2)[0]
    tensor([[-1.2000,  1.5000]])

    Source: Black et al., Training Diffusion Models with Reinforcement Learning, ICLR 2024, arXiv 2305.13301.
    """
    a, log_ratio = advantages(batch), drift(batch.steps)  # [g,k,1] or [g,k,t], [g,k,t]
    by_step = clipped(log_ratio, a, clip, clip) if form == "importance" else -a * batch.steps.logp
    return average(by_step, batch.steps.mask), drift_stats(batch, log_ratio, clip, clip)
