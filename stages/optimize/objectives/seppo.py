"""SePPO: DPO against the reference's own sample, which counts as a second winner where the policy lags behind."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs
from stages.parts import part
from stages.reduce import expected, log_ratio, pair_stats


@part(paper="arXiv 2410.05255", equation="the SePPO loss with its anchor", needs=("reference",))
def seppo(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 2000.0,
    anchor: Literal["sign", "indicator", "none"] = "sign",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Semi-Policy Preference Optimization.

        h = sum_t (logp - ref)          chosen is a good answer, rejected a sample of the reference
        a = 2 * h_chosen, no gradient: the reference's error on chosen minus the policy's, as logp = -error / 2
        s = 1 where a >= 0, else -1 (sign)      1 where a > 0, else 0 (indicator)      1 (none)
        loss = -log sigmoid(beta * (h_chosen - s * h_rejected))

    Where the policy already explains the good answer better than the reference does, the reference's sample is
    probably worse than what the policy would draw: it is a loser. Elsewhere it is a second winner, or left alone.

    Args:
        batch: pairs with reference log-probs; steps `[b,t]` in nats.
        beta: pull towards the reference, as DPO's. Paper: not told; 2000 is Diffusion-DPO's for SD 1.5.
        anchor: how the test on the good answer turns the other. Paper: sign; without it below SFT in its table.

    Returns:
        loss `[b]` in nats, log 2 at policy = reference, and TRL's statistics `[b]`, with `anchor`, the mean of s.

    Time is summed: the implicit reward is that of the whole answer. An image has one step, its noise level.

    Differences from the paper: none known; its text was not at hand, the formula is that of its public reviews. Soft
    labels are the expectation of its loss over which side is the good one, each with its own anchor. That the
    reference is an earlier policy drawn at random, and the sample its own, is the work of self-play.

    Example: h_chosen = -1: the policy lags, so h_rejected = 2 counts as a winner's: m = 0.5 * (-1 + 2).

    >>> from stages.batches import Steps
    >>> zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> pairs = Pairs(Steps(zero - 1, mask, ref=zero), Steps(zero + 2, mask, ref=zero))
    >>> seppo(pairs, beta=0.5)[0], seppo(pairs, beta=0.5, anchor="none")[0]
    (tensor([0.4741]), tensor([1.7014]))

    Source: Zhang et al., SePPO: Semi-Policy Preference Optimization for Diffusion Alignment, 2024, arXiv 2410.05255.
    """
    chosen, rejected = log_ratio(batch.chosen), log_ratio(batch.rejected)  # [b]
    right, wrong = turn(chosen, anchor), turn(rejected, anchor)  # the second: were the label the other way round
    loss = expected(
        batch.prob,
        F.softplus(-beta * (chosen - right * rejected)),
        F.softplus(-beta * (rejected - wrong * chosen)),
    )
    stats = pair_stats(batch, beta * chosen, beta * rejected)
    return loss, {**stats, "anchor": expected(batch.prob, right, wrong)}


def turn(h: Tensor, anchor: str) -> Tensor:
    """The factor s of the other side, from the log-ratio h of the good one; a = 2h has its sign.

    >>> turn(torch.tensor([-1.0, 0.0, 1.0]), "sign"), turn(torch.tensor([-1.0, 0.0, 1.0]), "indicator")
    (tensor([-1.,  1.,  1.]), tensor([0., 0., 1.]))
    """
    if anchor == "sign":
        return torch.where(h >= 0, 1.0, -1.0).to(h.dtype)
    return (h > 0).to(h.dtype) if anchor == "indicator" else torch.ones_like(h)
