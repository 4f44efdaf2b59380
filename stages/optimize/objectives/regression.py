"""Regression: a reward model with several outputs, each held to the rating of one aspect of an answer."""

import torch
from torch import Tensor

from stages.batches import Singles
from stages.parts import part
from stages.reduce import average


@part(paper="arXiv 2402.18571", equation="reward model, section 2", needs=("step_reward",))
def regression(batch: Singles) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared error of the ratings that are there.

        loss = sum_{a in A} (score_a - rating_a)^2 / |A|         A the aspects that somebody rated

    An aspect that nobody rated of this answer is outside the mask and gives its output no gradient, so that data sets
    with different aspects train one model.

    Args:
        batch: answers; `Steps.logp` `[b,m]` holds the scores of m outputs, `Steps.reward` `[b,m]` their ratings on the
            scale where 0 is the worst and 1 the best, `Steps.mask` `[b,m]` which of them exist.

    Returns:
        loss `[b]` in squared ratings, 0 of an answer without one, and the mean absolute error as `error` `[b]`.

    Time is averaged: the steps of an answer are its aspects, and one that was rated in few counts as much as others.

    Differences from the paper: ratings run from 0 to 1 instead of from 0 to 100, a factor of 10,000 in the loss.

    Example: scores 0.5 and 0.9 of an answer that was rated 1 in the first aspect and in the second not.

    >>> from stages.batches import Steps
    >>> rated = Steps(torch.tensor([[0.5, 0.9]]), torch.tensor([[True, False]]), reward=torch.tensor([[1.0, 0.0]]))
    >>> regression(Singles(rated))[0]
    tensor([0.2500])

    Source: Wang et al., Arithmetic Control of LLMs for Diverse User Preferences: Directional Preference Alignment with
    Multi-Objective Rewards, ACL 2024, arXiv 2402.18571.
    """
    steps = batch.steps
    assert steps.reward is not None, "this batch has no ratings"
    gap = torch.where(steps.mask, steps.logp - steps.reward, 0.0)  # [b,m]
    return average(gap**2, steps.mask), {"error": average(gap.abs(), steps.mask).detach()}
