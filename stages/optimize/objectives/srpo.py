"""SRPO: an answer and what it is revised into, learned as a game whose two sides both have a closed form."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Revisions
from stages.parts import part
from stages.reduce import log_ratio, pair_stats, reward_stats


@part(paper="arXiv 2406.01660", equation="L_alpha", needs=("reference",), families=("text", "tabular"))
def srpo(
    batch: Revisions,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Self-Improving Robust Preference Optimization.

    The generator gives y, the improver revises y' into y. In nats, both against the reference asked the same:

        h(y) = sum_t (logp - ref) of y                h(y | y') = the same of y as a revision of y'
        improver  = (p - 1/2 - beta * (h(w | l) - h(l | l)))^2 / 2 + (p - 1/2 - beta * (h(w | w) - h(l | w)))^2 / 2
        generator = (p - 1/2 - beta / 2 * (h(w | l) - h(l | w) + h(w) - h(l)))^2
        loss = (1 - alpha) * generator + alpha * improver

    with w the chosen answer, l the rejected, p = P(chosen preferred), 1 where it is not told. Where they are 0 for all
    pairs, the improver is ref(y | y') * exp(P(y beats y') / beta) / Z(y') and the generator ref(y) / Z(y): it gives
    what leaves least to improve, whichever policy the pairs came from.

    Args:
        batch: pairs as answers and as revisions of either side, all with reference log-probs; steps `[b,t]` in nats.
        beta: pull of both towards the reference: a preference of 1 is worth a log-ratio of 1/beta nats.
        alpha: weight of the improver's loss; 0 leaves the answers as revisions of themselves out.

    Returns:
        loss `[b]`, 1/4 at policy = reference and p = 1; statistics `[b]`: TRL's of the generator's rewards beta * h,
        `revisions/...` the same of the improver's, the mean over what is revised, and both losses.

    Time is summed, not averaged: a preference is about whole answers.

    Differences from the paper: none that is known; where p lies between 0 and 1 the squares are those of its mean.

    Example: at policy = reference every h is 0, and so is what is learned where neither side is better.

    >>> from stages.batches import Pairs, Steps
    >>> zero = Steps(torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool), ref=torch.zeros(2, 1))
    >>> pairs = Pairs(zero, zero, prob=torch.tensor([1.0, 0.5]))
    >>> srpo(Revisions(pairs, of_chosen=pairs, of_rejected=pairs))[0]
    tensor([0.2500, 0.0000])

    Source: Choi et al., Self-Improving Robust Preference Optimization, ICLR 2025, arXiv 2406.01660.
    """
    h_w, h_l = log_ratio(batch.answers.chosen), log_ratio(batch.answers.rejected)  # [b]
    h_ww, h_lw = log_ratio(batch.of_chosen.chosen), log_ratio(batch.of_chosen.rejected)
    h_wl, h_ll = log_ratio(batch.of_rejected.chosen), log_ratio(batch.of_rejected.rejected)
    target = (torch.ones_like(h_w) if batch.answers.prob is None else batch.answers.prob) - 0.5
    improver = ((target - beta * (h_wl - h_ll)) ** 2 + (target - beta * (h_ww - h_lw)) ** 2) / 2
    generator = (target - beta / 2 * (h_wl - h_lw + h_w - h_l)) ** 2
    stats = pair_stats(batch.answers, beta * h_w, beta * h_l)
    revised = reward_stats(beta * (h_wl + h_ww) / 2, beta * (h_ll + h_lw) / 2)
    stats |= {name.replace("rewards", "revisions"): value for name, value in revised.items()}
    stats |= {"loss/generator": generator.detach(), "loss/improver": improver.detach()}
    return (1 - alpha) * generator + alpha * improver, stats
