"""Group: how far a reward is above the mean of its prompt's samples, in standard deviations."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import average, centred


@part(paper="arXiv 2402.03300", equation="outcome supervision", couples=True)
def group(
    batch: Groups,
    *,
    std: Literal["group", "batch", "none"] = "group",
    clamp: Annotated[float, Field(gt=0)] = 5.0,
    eps: Annotated[float, Field(gt=0)] = 1e-4,
) -> Tensor:
    """Group-relative advantage.

        A = clip((r - mean_group) / (std + eps), -clamp, clamp)

    Args:
        batch: groups with rewards `[g,k]`.
        std: of the rewards of the group, of all rewards of the batch, or none: the difference alone. Divided by their
            number, not by one less. Paper: group; Flow-GRPO and AWM: batch.
        clamp: largest advantage, infinite for no limit. Within a group of K none is above sqrt(K - 1), so that 5 is
            felt from K = 27 on. DDPO, Flow-GRPO, AWM: 5; the paper has no limit.
        eps: keeps equal rewards at 0. TRL, Flow-GRPO, AWM: 1e-4; DDPO: 1e-6.

    Returns:
        advantages `[g,k]` without gradient, 0 for absent members and where all rewards of a group are equal; their sum
        over a group is 0 where nothing is clamped.

    A constant added to the rewards of a prompt changes nothing under `group` and `none`. Under `batch` it widens the
    spread of all rewards and shrinks every advantage by one factor: scale rewards alike over prompts first.

    Differences from the paper: none. TRL divides the group's variance by K - 1, which makes advantages smaller by
    sqrt((K - 1) / K).

    Example: rewards 1 and 0 lie one standard deviation, 0.5, from their mean.

    >>> import torch
    >>> from stages.batches import Steps
    >>> there = torch.ones(1, 2, dtype=torch.bool)
    >>> steps = Steps(torch.zeros(1, 2, 1), there[..., None])
    >>> group(Groups(steps, reward=torch.tensor([[1.0, 0.0]]), valid=there), eps=1e-6)
    tensor([[ 1.0000, -1.0000]])

    Source: Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, 2024,
    arXiv 2402.03300.
    """
    above = centred(batch)  # [g,k]
    if std == "group":
        above = above / (average(above**2, batch.valid).sqrt() + eps)[:, None]
    elif std == "batch":
        reward, valid = batch.reward.detach().flatten(), batch.valid.flatten()
        above = above / (average((reward - average(reward, valid)) ** 2, valid).sqrt() + eps)
    return above.clamp(-clamp, clamp)
