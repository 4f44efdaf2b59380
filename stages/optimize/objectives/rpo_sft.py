"""RPO: DPO and a likelihood term on the chosen answers, which is what pessimism about the reward comes to."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs
from stages.parts import part
from stages.reduce import average, expected, log_ratio, pair_stats, total


@part(paper="arXiv 2405.16436", equation="the RPO objective, chosen answers as baseline", needs=("reference",))
def rpo_sft(
    batch: Pairs,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.01,
    eta: Annotated[float, Field(ge=0)] = 0.005,
    length_normalize: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Regularized Preference Optimization, with the SFT loss as adversarial regularizer.

        h = sum_t (logp - ref)          m = beta * (h_chosen - h_rejected)
        loss = -log sigmoid(m) - eta * beta * sum_t logp_chosen

    The policy is chosen against the reward that fits the preferences and makes it look worst beside the chosen
    answers; with the reward written as beta * h that game is one loss. With P(chosen preferred) = p both terms are
    their expectation over which side is chosen.

    Args:
        batch: pairs with reference log-probs; steps `[b,t]` in nats.
        beta: pull towards the reference, as DPO's. Paper: 0.01 to 0.05.
        eta: weight of the likelihood beside the preferences; 0 is DPO. Paper: 0.005 for sums. For means the authors'
            code has a coefficient of its own, 0.2 at beta 0.5, which is an eta of 0.4 here.
        length_normalize: take the mean over tokens in the likelihood term, not the sum. The paper's equation is False;
            the authors' later advice is True, for reasoning above all.

    Returns:
        loss `[b]` in nats, and statistics `[b]`: TRL's and `nll`, the likelihood term before its coefficient.

    Time is summed in the margin; in the likelihood term it is summed or averaged, see `length_normalize`: a sum counts
    a long answer more, and a coefficient of one form is about the length times that of the other.

    Differences from the paper: none (the averaged form is of the authors' code).

    Example: h_chosen = 2, h_rejected = 0, beta = 0.5, logp_chosen = -3 and eta = 0.2: 0.3133 + 0.1 * 3 = 0.6133.

    >>> import torch
    >>> from stages.batches import Steps
    >>> one, mask = torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> pairs = Pairs(Steps(-3 * one, mask, ref=-5 * one), Steps(-one, mask, ref=-one))
    >>> rpo_sft(pairs, beta=0.5, eta=0.2)[0]
    tensor([0.6133])

    Source: Liu et al., Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial
    Regularizer, NeurIPS 2024, arXiv 2405.16436.
    """
    chosen = beta * log_ratio(batch.chosen)  # [b]
    rejected = beta * log_ratio(batch.rejected)  # [b]
    m = chosen - rejected
    preference = expected(batch.prob, F.softplus(-m), F.softplus(m))
    reduce = average if length_normalize else total
    sides = (-reduce(side.logp, side.mask) for side in (batch.chosen, batch.rejected))
    nll = expected(batch.prob, *sides)
    return preference + eta * beta * nll, {**pair_stats(batch, chosen, rejected), "nll": nll.detach()}
