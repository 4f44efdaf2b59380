"""TPO: imitate the best of three answers, and prefer the second best to the worst, in one stage without a reference."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import length, reward_stats, total


@part(paper="arXiv 2405.16681", equation="L_TPO = L_preference + alpha * L_reference", couples=True)
def tpo(
    batch: Groups,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    alpha: Annotated[float, Field(ge=0)] = 1.0,
    length_normalize: bool = False,
    gamma: Annotated[float, Field(ge=0)] = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Triple Preference Optimization.

        L = sum_t logp                  gold, chosen, rejected: the best, the second best and the worst of a group
        m = beta * (L_chosen - L_rejected) - gamma
        n = mean over the batch of the number of steps of gold
        loss = -log sigmoid(m) - alpha * L_gold / n

    TPO-L, of the paper's later version, is `length_normalize` with a margin: L of chosen and rejected is a mean.

    Args:
        batch: groups with rewards, best of all three to a group (pairing `triple`): members between the second and the
            last are priced for nothing. Steps `[g,k,t]` in nats.
        beta: scale of the log-prob gap. Paper: 0.01 to 0.2; means want SimPO's 2 to 10.
        alpha: weight of the likelihood of gold. Paper: 0.5 to 1.
        length_normalize: divide L of chosen and rejected by their numbers of steps. Paper: False; TPO-L: True.
        gamma: lead in beta * L that chosen must have. Paper: 0; TPO-L: 0.5.

    Returns:
        loss `[g]` in nats; statistics `[g]`: rewards beta * L of chosen and rejected, and `nll_loss`, that of gold.

    Time is summed in the preference unless `length_normalize`, and averaged over all steps of the batch in the
    likelihood, as in the authors' code. So groups meet in n, which is that of one call, as in CPO.

    Differences from the paper:
        1. It writes the likelihood term as a sum over the answer's tokens; its code takes the mean over the batch's
           tokens, and so does this.
        2. A group of two has one answer for chosen and rejected: only gold teaches there.

    Equal rewards are told apart by their place, the first one higher. With chosen in the place of gold this is CPO.

    Example: gold, chosen and rejected of one step each, L = -2, -3 and -4, beta = 1: log(1 + e^-1) + 2 = 2.3133.

    >>> from stages.batches import Steps
    >>> mask = torch.ones(1, 3, 1, dtype=torch.bool)
    >>> logp = torch.tensor([[[-2.0], [-3.0], [-4.0]]])
    >>> tpo(Groups(Steps(logp, mask), reward=torch.tensor([[1.0, 0.5, 0.0]]), valid=mask[..., 0]), beta=1.0)[0]
    tensor([2.3133])

    Source: Saeidi et al., Triple Preference Optimization: Achieving Better Alignment using a Single Step
    Optimization, 2024, arXiv 2405.16681.
    """
    said, steps = total(batch.steps.logp, batch.steps.mask), length(batch.steps.mask)  # [g,k]
    order = torch.where(batch.valid, batch.reward, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    worst = batch.valid.sum(-1, keepdim=True) - 1  # [g,1] its place in the order
    gold, second, last = (order.gather(-1, place) for place in (0 * worst, worst.clamp(max=1), worst))
    compared = beta * (said / steps if length_normalize else said)
    chosen, rejected = (compared.gather(-1, member).squeeze(-1) for member in (second, last))  # [g]
    count = steps.gather(-1, gold).squeeze(-1).to(said.dtype)  # [g]
    nll = -said.gather(-1, gold).squeeze(-1) / count.mean()
    loss = F.softplus(gamma - (chosen - rejected)) + alpha * nll
    return loss, reward_stats(chosen, rejected) | {"nll_loss": nll.detach()}
