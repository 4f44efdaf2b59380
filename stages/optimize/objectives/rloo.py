"""RLOO: the whole answer is one action, weighed by how far its KL-regularized reward is above the other samples'."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Groups, Steps
from stages.parts import part
from stages.reduce import advantages, average, clipped, drift, drift_stats, left_out, total


@part(
    paper="arXiv 2402.14740",
    equation="RLOO estimator",
    families=("text", "control", "tabular"),
    needs=("behaviour", "advantage", "reference"),
    idle=(("reference", "beta"),),
    online=True,
)
def rloo(
    batch: Groups,
    *,
    clip: Annotated[float, Field(gt=0, le=1)] = 0.2,
    beta: Annotated[float, Field(ge=0)] = 0.03,
) -> tuple[Tensor, dict[str, Tensor]]:
    """REINFORCE Leave-One-Out.

        h_i = sum_t (old_t - ref_t)          rho_i = exp(sum_t (logp_t - old_t))
        A_i = (r_i - beta * h_i) - mean of (r_j - beta * h_j) over the others j
        loss = max(-A * rho, -A * clip(rho, 1 - clip, 1 + clip))

    The rewards' own share of A comes with the batch, from the advantage `leave_one_out`; the mean over the others is
    linear, so that the share of h is taken off here.

    Args:
        batch: groups with behaviour log-probs, advantages `[g,k]` and, unless beta is 0, reference log-probs; steps
            `[g,k,t]` in nats.
        clip: how far the ratio of a whole answer may go and still be counted. TRL: 0.2.
        beta: price of a nat of log-ratio to the reference, in units of the reward; 0 leaves it out, and the reference
            is not read. Paper: 0.03; TRL: 0.05.

    Returns:
        loss `[g,k]`, -A at policy = behaviour, 0 for absent members; and statistics `[g]`: `kl`, mean of old - ref over
        the steps of the group, where beta is not 0; `clip_ratio`, the share of answers outside the clip range;
        `approx_kl`, mean of log(rho)^2 / 2 over answers.

    Time is summed, not averaged: the action is the whole answer. The ratio of a long answer leaves the clip range
    after small changes of its steps; the first update on fresh samples has a ratio of 1 whatever the length.

    Differences from the paper: it has no ratio and no clipping; TRL has both, and at policy = behaviour the gradient
    is the paper's. The log-ratio in the reward is the behaviour's: no gradient goes through it.

    Example: equal rewards, but the first answer was e^2 times as likely as under the reference: A = -2 beta, 2 beta.

    >>> mask, zero = torch.ones(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, 1)
    >>> ref = torch.tensor([[[-2.0], [0.0]]])
    >>> group = Groups(Steps(zero, mask, old=zero, ref=ref), reward=zero[..., 0], valid=mask[..., 0],
    ...                advantage=zero[..., 0])
    >>> rloo(group, beta=0.5)[0]
    tensor([[ 1., -1.]])

    Source: Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
    in LLMs, ACL 2024, arXiv 2402.14740.
    """
    steps, valid = batch.steps, batch.valid
    a, log_ratio = advantages(batch), total(drift(steps), steps.mask)[..., None]  # [g,k,1]: an answer is one step
    whole = replace(batch, steps=Steps(log_ratio, valid[..., None]))
    stats = drift_stats(whole, log_ratio, clip, clip)
    if beta:
        assert steps.old is not None
        assert steps.ref is not None, "this batch has no reference"
        gone = steps.old - steps.ref  # [g,k,t]
        h = left_out(replace(batch, reward=total(gone, steps.mask)))  # [g,k]
        a = a - beta * h[..., None]
        stats["kl"] = average(gone.flatten(-2), (steps.mask & valid[..., None]).flatten(-2))
    return torch.where(valid, clipped(log_ratio, a, clip, clip).squeeze(-1), 0.0), stats
