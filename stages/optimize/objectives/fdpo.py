"""f-DPO: DPO under another divergence than the reverse KL; each turns the log-ratio into a score of its own."""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs
from stages.parts import part
from stages.reduce import expected, log_ratio, pair_stats

FAR = 60.0  # nats at which the exponential goes straight on: e^60 times any log-ratio is still a float32


@part(paper="arXiv 2309.16240", equation="the f-DPO loss", needs=("reference",))
def fdpo(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    divergence: Literal["alpha", "jensen_shannon", "reverse_kl", "forward_kl"] = "jensen_shannon",
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct Preference Optimization with an f-divergence.

        h = sum_t (logp - ref)          u = e^h = policy / reference
        loss = -log sigmoid(beta * (S(h_chosen) - S(h_rejected)))       S(h) = f'(u) - f'(1)

        divergence       f(u)                                     S(h)
        reverse_kl       u log u                                  h                         (DPO)
        forward_kl       -log u                                   1 - e^-h
        jensen_shannon   u log u - (u + 1) log((u + 1) / 2)       log sigmoid(h) + log 2
        alpha            (u^(1-a) - (1 - a) u - a) / (a (a - 1))  (1 - e^(-a h)) / a

    Divergences whose f' does not rise without end towards u = 0 are not among them: answers might get probability 0,
    and the constant of a prompt no longer cancels in its pairs.

    Args:
        batch: pairs with reference log-probs; steps `[b,t]` in nats.
        beta: pull towards the reference. Paper: 0.1.
        divergence: of the policy from the reference. From reverse KL over Jensen-Shannon and alpha to forward KL the
            policy keeps more of the reference's answers and gains less reward.
        alpha: of the alpha divergence, between reverse KL (towards 0) and forward KL (towards 1). Paper: 0.3 to 0.7.

    Returns:
        loss `[b]` in nats, log 2 at policy = reference, and statistics `[b]`: TRL's with rewards beta * S(h), and
        `log_ratios/margins`, the difference of the h, which can be compared across divergences.

    Time is summed: u is the ratio of whole answers. Of long answers e^-h has an enormous range, and a few of them
    decide a gradient of forward KL.

    Differences from the paper:
        1. From e^60 on the exponential goes straight on, so that nothing overflows and the order of scores stays.

    Example: h_chosen = log 2, h_rejected = 0 under forward KL at beta = 2: m = 2 * (1 - 1/2) = 1.

    >>> from stages.batches import Steps
    >>> zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> pairs = Pairs(Steps(torch.full((1, 1), math.log(2)), mask, ref=zero), Steps(zero, mask, ref=zero))
    >>> fdpo(pairs, beta=2.0, divergence="forward_kl")[0]
    tensor([0.3133])

    Source: Wang et al., Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
    Constraints, ICLR 2024, arXiv 2309.16240.
    """
    chosen, rejected = log_ratio(batch.chosen), log_ratio(batch.rejected)  # [b]
    good, bad = (beta * _score(h, divergence, alpha) for h in (chosen, rejected))
    loss = expected(batch.prob, F.softplus(bad - good), F.softplus(good - bad))
    return loss, {**pair_stats(batch, good, bad), "log_ratios/margins": (chosen - rejected).detach()}


def _score(h: Tensor, divergence: str, alpha: float) -> Tensor:
    """The derivative of f at e^h, shifted to 0 at the reference."""
    if divergence == "reverse_kl":
        return h
    if divergence == "jensen_shannon":
        return F.logsigmoid(h) + math.log(2)
    power = 1.0 if divergence == "forward_kl" else alpha
    x = -power * h
    return -(torch.expm1(x.clamp(max=FAR)) + math.exp(FAR) * (x - FAR).clamp(min=0)) / power
