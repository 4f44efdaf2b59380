"""What three or more parts share: masked sums and means over steps, log-ratios, soft labels, groups, statistics.

The length of a candidate is the count of its mask, never of its non-zero values: at policy = reference every
log-ratio is zero.
"""

import torch
from torch import Tensor

from stages.batches import Groups, Pairs, Steps

LARGEST = 20.0  # a log-ratio in nats above which exp adds nothing but overflow: its weight is 5e8 and has no gradient


def total(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the last axis where `mask` holds: `[..., t] -> [...]`.

    >>> total(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([3.])
    """
    return torch.where(mask, values, 0.0).sum(-1)


def length(mask: Tensor) -> Tensor:
    """Number of real steps, at least 1 so that it may divide: `[..., t] -> [...]`.

    >>> length(torch.tensor([[True, True, False], [False, False, False]]))
    tensor([2, 1])
    """
    return mask.sum(-1).clamp(min=1)


def average(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the last axis where `mask` holds: `[..., t] -> [...]`.

    >>> average(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([1.5000])
    """
    return total(values, mask) / length(mask)


def log_ratio(steps: Steps) -> Tensor:
    """The log-ratio to the reference h = sum_t (logp - ref), in nats: `[b,t] -> [b]`."""
    assert steps.ref is not None, "this batch has no reference"
    return total(steps.logp - steps.ref, steps.mask)


def expected(prob: Tensor | None, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Expectation over which side is preferred: `chosen` holds where chosen wins (with `prob`), else `rejected`.

    >>> expected(torch.tensor([0.75]), torch.tensor([4.0]), torch.tensor([0.0]))
    tensor([3.])
    """
    return chosen if prob is None else prob * chosen + (1 - prob) * rejected


def reward_stats(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """TRL's names for the (implicit) rewards `[b]` of both sides, detached.

    `rewards/accuracies` counts a tie as one half, so that it is 0.5 at policy = reference.
    """
    margins = (chosen - rejected).detach()
    return {
        "rewards/chosen": chosen.detach(),
        "rewards/rejected": rejected.detach(),
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).to(margins.dtype) + 0.5 * (margins == 0).to(margins.dtype),
    }


def pair_stats(batch: Pairs, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """`reward_stats` and the summed log-probs of both sides: what a pairwise objective reports."""
    return reward_stats(chosen, rejected) | {
        "logps/chosen": total(batch.chosen.logp, batch.chosen.mask).detach(),
        "logps/rejected": total(batch.rejected.logp, batch.rejected.mask).detach(),
    }


def centred(batch: Groups) -> Tensor:
    """Rewards minus the mean of their group, without gradient, 0 for absent members: `[g,k]`.

    They are taken from the highest first: the mean of equal rewards may differ from them in its last digit, theirs
    from 0 does not, and nobody divides that digit by a deviation as small.
    """
    reward = torch.where(batch.valid, batch.reward, -torch.inf).detach()
    below = torch.where(batch.valid, reward - reward.amax(-1, keepdim=True), 0.0)
    return torch.where(batch.valid, below - average(below, batch.valid)[:, None], 0.0)


def left_out(batch: Groups) -> Tensor:
    """Rewards minus the mean of the others of their group, without gradient, 0 for absent members: `[g,k]`."""
    count = length(batch.valid)[:, None]  # [g,1]
    return centred(batch) * count / (count - 1).clamp(min=1)


def better(batch: Groups) -> Tensor:
    """Which member of a group has the higher reward, ties and absent members apart: `[g,i,j]` bool, i above j."""
    both = batch.valid[:, :, None] & batch.valid[:, None, :]
    return both & (batch.reward[:, :, None] > batch.reward[:, None, :])


def differences(values: Tensor) -> Tensor:
    """Every member's value minus every other's: `[g,k] -> [g,k,k]`.

    >>> differences(torch.tensor([[3.0, 1.0]]))
    tensor([[[ 0.,  2.],
             [-2.,  0.]]])
    """
    return values[:, :, None] - values[:, None, :]


def drift(steps: Steps) -> Tensor:
    """The log-ratio of each step to the behaviour policy, in nats: `[...,t]`."""
    assert steps.old is not None, "this batch has no behaviour log-probs"
    return steps.logp - steps.old


def advantages(batch: Groups) -> Tensor:
    """The advantage of each step, `[g,k,t]` or `[g,k,1]`, 0 for absent members."""
    assert batch.advantage is not None, "this batch has no advantages"
    by_step = batch.advantage if batch.advantage.dim() == 3 else batch.advantage[..., None]
    return torch.where(batch.valid[..., None], by_step, 0.0)


def clipped(log_ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """The clipped policy-gradient loss max(-A * rho, -A * clip(rho, 1 - low, 1 + high)) with rho = exp(log_ratio).

    The larger of the two: no gain is counted beyond the clip range, every harm is. The log-ratio is cut before exp, in
    padding too, since the gradient of an overflow that is masked later is 0 * inf.

    >>> clipped(torch.tensor([1.5, 1.5, 0.5]).log(), torch.tensor([1.0, -1.0, -1.0]), low=0.2, high=0.2)
    tensor([-1.2000,  1.5000,  0.8000])
    """
    ratio = log_ratio.clamp(max=LARGEST).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - low, 1 + high))


def drift_stats(batch: Groups, log_ratio: Tensor, low: float, high: float) -> dict[str, Tensor]:
    """How far a group `[g,k,t]` has left its behaviour policy, detached means `[g]` over the steps of its members.

    `clip_ratio` is the share of steps outside the clip range, `approx_kl` the mean of log_ratio^2 / 2.
    """
    mask = (batch.steps.mask & batch.valid[..., None]).flatten(-2)
    gone = log_ratio.detach().flatten(-2)  # [g,k*t]
    ratio = gone.exp()
    outside = (ratio < 1 - low) | (ratio > 1 + high)
    return {"clip_ratio": average(outside.to(gone.dtype), mask), "approx_kl": average(gone**2 / 2, mask)}
