"""BRAIn: the policy is distilled from its reward-tilted reference, both weighed over the same few samples."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import total


@part(
    paper="arXiv 2402.02479",
    equation="self-normalised KL of the reward-conditioned posterior",
    needs=("reference", "behaviour"),
)
def brain(
    batch: Groups,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Bayesian Reward-conditioned Amortized Inference.

        L = sum_t logp        R = sum_t ref        Q = sum_t old
        alpha = softmax over members of (R + r / beta - Q)        (no gradient)
        b = softmax over members of (L - Q)
        loss = KL(alpha || b) = sum alpha * (log alpha - log b)

    alpha are the self-normalised importance weights of the posterior ref * exp(r / beta) / Z, b those of the policy.
    The gradient -sum (alpha - b) * grad L is 0 for every set of samples where the policy is the posterior: b is the
    baseline that removes the noise of the estimate there.

    Args:
        batch: groups with rewards, reference and behaviour log-probs; steps `[g,k,t]` in nats. The behaviour is the
            policy that drew the samples, at the temperature and nucleus that they were drawn with.
        beta: temperature of the posterior, in units of the reward. As it falls, alpha falls on one member.

    Returns:
        loss `[g]` in nats, 0 where both weigh the members alike; and statistics `[g]`: `ess`, the effective number of
        samples 1 / sum alpha^2, and `rewards/margins`, the mean reward under b minus the plain mean.

    Time is summed: importance weights are those of whole answers.

    Differences from the paper: none; of its two ways to read "good" out of a reward this is the exponential one.

    Example: two samples of the reference, r = (1, 0), beta = 1: alpha = (0.7311, 0.2689), b = (1/2, 1/2). The loss is
    0.7311 * log(0.7311 / 0.5) + 0.2689 * log(0.2689 / 0.5) = 0.1109.

    >>> from stages.batches import Steps
    >>> mask, zero = torch.ones(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, 1)
    >>> steps = Steps(zero, mask, ref=zero, old=zero)
    >>> brain(Groups(steps, reward=torch.tensor([[1.0, 0.0]]), valid=mask[..., 0]), beta=1.0)[0]
    tensor([0.1109])

    Source: Pandey et al., BRAIn: Bayesian Reward-conditioned Amortized Inference for natural language generation from
    feedback, ICML 2024, arXiv 2402.02479.
    """
    steps = batch.steps
    assert steps.ref is not None, "this batch has no reference"
    assert steps.old is not None, "this batch has no behaviour log-probs"
    tilt = torch.where(batch.valid, batch.reward, 0.0) / beta
    log_alpha = _weights(total(steps.ref - steps.old, steps.mask) + tilt, batch.valid).detach()  # [g,k]
    log_b = _weights(total(steps.logp - steps.old, steps.mask), batch.valid)
    alpha = torch.where(batch.valid, log_alpha.exp(), 0.0)
    loss = total(alpha * (log_alpha - log_b), batch.valid)
    b = torch.where(batch.valid, log_b.exp(), 0.0).detach()
    plain = batch.valid / batch.valid.sum(-1, keepdim=True).clamp(min=1)
    margins = total((b - plain) * batch.reward, batch.valid)
    return loss, {"ess": 1 / (alpha**2).sum(-1), "rewards/margins": margins}


def _weights(logs: Tensor, valid: Tensor) -> Tensor:
    """Log of the self-normalised weights of a group's members: `[g,k]`, 0 for absent ones."""
    kept = torch.where(valid, logs, -torch.inf)
    return torch.where(valid, logs - kept.logsumexp(-1, keepdim=True), 0.0)
