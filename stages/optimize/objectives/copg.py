"""CoPG: two answers of a prompt must agree in reward minus the price of leaving the reference; no sampling assumed."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import average, differences, log_ratio


@part(paper="arXiv 2406.19185", equation="contrastive policy gradient loss", needs=("reference",))
def copg(
    batch: Groups,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrastive Policy Gradient.

        rt = r - beta * sum_t (logp - ref)
        loss = mean over pairs of members of  (rt_i - rt_j)^2 / (2 beta)

    The gradient of a pair is -(rt_i - rt_j) * (grad L_i - grad L_j): a policy gradient in which each answer's baseline
    is the other's regularized reward. At the optimum ref * exp(r / beta) / Z all rt of a prompt are equal, wherever the
    answers came from.

    Args:
        batch: groups with rewards and reference log-probs, drawn by anyone; steps `[g,k,t]` in nats.
        beta: pull towards the reference, in units of the reward. The division by 2 beta keeps the gradient finite as
            beta falls.

    Returns:
        loss `[g]`, 0 for a lone member; and statistics `[g]`: `rewards/chosen`, the mean of beta * (logp - ref) summed
        over time, `gap`, the root of the mean (rt_i - rt_j)^2 over pairs.

    Time is summed: the log-ratio is that of the whole answer.

    Differences from the paper: none for two members; more are all paired, as Cohere's Command A does, and averaged.

    Example: r = (1, 0) at the reference and beta = 0.5: (1 - 0)^2 / 1 = 1.

    >>> from stages.batches import Steps
    >>> mask, zero = torch.ones(1, 2, 1, dtype=torch.bool), torch.zeros(1, 2, 1)
    >>> copg(Groups(Steps(zero, mask, ref=zero), reward=torch.tensor([[1.0, 0.0]]), valid=mask[..., 0]), beta=0.5)[0]
    tensor([1.])

    Source: Flet-Berliac et al., Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a
    supervised-friendly fashion, EMNLP 2024, arXiv 2406.19185.
    """
    implicit = torch.where(batch.valid, beta * log_ratio(batch.steps), 0.0)  # [g,k]
    rt = torch.where(batch.valid, batch.reward, 0.0) - implicit
    both = batch.valid[:, :, None] & batch.valid[:, None, :]
    pairs = both & ~torch.eye(rt.shape[-1], dtype=torch.bool, device=rt.device)  # [g,k,k] each pair twice
    square = average((differences(rt) ** 2).flatten(-2), pairs.flatten(-2))
    stats = {"rewards/chosen": average(implicit, batch.valid).detach(), "gap": square.detach().sqrt()}
    return square / (2 * beta), stats
