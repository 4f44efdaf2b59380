"""CPO: DPO with a uniform reference, held in place by the likelihood of the winner."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs
from stages.parts import part
from stages.reduce import LARGEST, expected, length, pair_stats, total


@part(paper="arXiv 2401.08417", equation="L_CPO = L_prefer + L_NLL", couples=True)
def cpo(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    alpha: Annotated[float, Field(ge=0)] = 1.0,
    label_smoothing: Annotated[float, Field(ge=0, le=0.5)] = 0.0,
    length_normalize: bool = False,
    gamma: Annotated[float, Field(ge=0)] = 0.0,
    shape: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Contrastive Preference Optimization.

        L = sum_t logp                  m = beta * (r_chosen - r_rejected) - gamma        r = L
        n = mean over the batch of the number of steps of chosen
        loss = -log sigmoid(m) - alpha * L_chosen / n

    The mean over a batch of `L / n` is `sum of log-probs / number of steps`: every step of every winner weighs alike.
    With P(chosen preferred) = p, L_chosen and its steps become `p * chosen + (1 - p) * rejected`: the batch in which
    each pair stands in both orders in that proportion.

    Two later methods change r alone. CPO-SimPO, which is SimPO with the likelihood of the winner, takes
    `length_normalize`, and with it SimPO's beta and gamma; AlphaPO a `shape` besides.

    Args:
        batch: pairs; steps `[b,t]` in nats.
        beta: scale of the log-prob gap. Paper: 0.1.
        alpha: weight of the likelihood of the winner. Paper: 1.
        label_smoothing: probability that a label of the preference is wrong, at most 0.5. Paper: 0.
        length_normalize: r is L divided by the number of steps. Paper: False.
        gamma: lead in beta * r that the winner must have. Paper: 0.
        shape: AlphaPO's alpha: r becomes (1 - exp(-shape * r)) / shape, which is steeper for unlikely answers where it
            is above 0, and flatter below. Paper: 0, which leaves r as it is; AlphaPO takes it of means.

    Returns:
        loss `[b]` in nats, TRL's statistics `[b]`, and `nll_loss` `[b]`.

    Time is summed in the preference, unless `length_normalize`, and averaged over all steps of the batch in the
    likelihood, as in the authors' code. So examples meet in n, which is that of one call: micro-batches of unequal
    lengths weigh their steps differently.

    Differences from the paper:
        1. It writes the likelihood term as a sum over the answer's tokens; its code takes the mean over the batch's
           tokens, and so does this.

    Example: one pair, L_chosen = -2 in 2 steps, L_rejected = -3, beta = 1: log(1 + e^-1) + 2/2 = 1.3133.

    >>> from stages.batches import Steps
    >>> mask = torch.ones(1, 2, dtype=torch.bool)
    >>> pairs = Pairs(Steps(torch.tensor([[-1.0, -1.0]]), mask), Steps(torch.tensor([[-1.0, -2.0]]), mask))
    >>> cpo(pairs, beta=1.0)[0]
    tensor([1.3133])

    Source: Xu et al., Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine
    Translation, ICML 2024, arXiv 2401.08417; for `shape` Gupta et al., AlphaPO: Reward Shape Matters for LLM Alignment,
    ICML 2025, arXiv 2501.03884.
    """
    chosen = total(batch.chosen.logp, batch.chosen.mask)  # [b]
    rejected = total(batch.rejected.logp, batch.rejected.mask)  # [b]
    sizes = length(batch.chosen.mask), length(batch.rejected.mask)
    better, worse = (
        beta * bent(said / size if length_normalize else said, shape)
        for said, size in zip((chosen, rejected), sizes, strict=True)
    )
    d = better - worse
    p = torch.ones_like(d) if batch.prob is None else batch.prob
    q = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    prefer = expected(q, F.softplus(gamma - d), F.softplus(gamma + d))
    steps = expected(p, *sizes)  # [b]
    nll = -expected(p, chosen, rejected) / steps.mean()
    return prefer + alpha * nll, pair_stats(batch, better, worse) | {"nll_loss": nll.detach()}


def bent(r: Tensor, shape: float) -> Tensor:
    """AlphaPO's reward (1 - exp(-shape * r)) / shape, whose limit at shape 0 is r; exp is cut before it overflows.

    >>> bent(torch.tensor([-1.0, 0.0]), 0.5)
    tensor([-1.2974,  0.0000])
    """
    return -torch.expm1((-shape * r).clamp(max=LARGEST)) / shape if shape else r
