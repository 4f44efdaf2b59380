"""HyPO: DPO on offline pairs, and a reverse KL to the reference that is measured on the policy's own samples."""

from dataclasses import replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Groups, Hybrid
from stages.parts import part
from stages.reduce import average, expected, left_out, length, log_ratio, pair_stats, total


@part(
    paper="arXiv 2406.01462",
    equation="algorithm 1",
    families=("text", "control", "vision", "tabular"),
    needs=("reference", "behaviour", "samples"),
    idle=(("behaviour", "lambda_kl"), ("samples", "lambda_kl")),
    online=True,
)
def hypo(
    batch: Hybrid,
    *,
    beta: Annotated[float, Field(gt=0)] = 0.1,
    lambda_kl: Annotated[float, Field(ge=0)] = 0.01,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Hybrid Preference Optimization.

        h = sum_t (logp - ref)          m = beta * (h_chosen - h_rejected)
        H_k = sum_t (old_k - ref_k)     b_k = mean of H_j over the other samples j of the prompt, 0 where it is alone
        loss = -log sigmoid(m) + lambda_kl * mean_k (sum_t logp_k) * (H_k - b_k)

    The second term is a surrogate: on samples of the policy itself (old = logp) its expected gradient is that of
    KL(policy || reference), with the baseline b as without it, which only lowers the variance. Its value means
    nothing; the KL itself is reported as `kl`. With P(chosen preferred) = p the first term is its expectation over
    the label.

    Args:
        batch: pairs with reference log-probs and, unless lambda_kl is 0, samples of each pair's prompt with those of
            the reference and of the policy that drew them, at temperature 1; steps in nats.
        beta: pull towards the reference on the pairs, as in DPO. DPO: 0.1 to 0.5.
        lambda_kl: price of a nat of reverse KL to the reference; 0 is DPO, and nothing is sampled. What suits depends
            on the length of answers: tune it on `kl`.

    Returns:
        loss `[b]` in nats; statistics `[b]`: TRL's of the pairs, and `kl`, the mean H of the samples, an unbiased
        estimate of the KL of whole answers.

    Time is summed, not averaged: both the implicit reward and the KL are those of the whole answer.

    Differences from the paper: the samples answer the prompts of the step's pairs. There is no clipping.

    Example: the pair is as in DPO with m = 0, log 2 = 0.6931. One sample, twice as likely as under the reference and
    with log-prob -1, adds 0.5 * -1 * log 2.

    >>> from math import log
    >>> from stages.batches import Pairs, Steps
    >>> zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> one = -torch.ones(1, 1, 1)
    >>> drawn = Steps(one, mask[None], ref=one - log(2), old=one)
    >>> samples = Groups(drawn, reward=zero, valid=mask)
    >>> hypo(Hybrid(Pairs(Steps(zero, mask, ref=zero), Steps(zero, mask, ref=zero)), samples), lambda_kl=0.5)[0]
    tensor([0.3466])

    Source: Song et al., The Importance of Online Data: Understanding Preference Fine-tuning via Coverage, NeurIPS
    2024, arXiv 2406.01462.
    """
    chosen, rejected = (beta * log_ratio(side) for side in (batch.pairs.chosen, batch.pairs.rejected))  # [b]
    m, stats = chosen - rejected, pair_stats(batch.pairs, chosen, rejected)
    loss = expected(batch.pairs.prob, F.softplus(-m), F.softplus(m))
    if lambda_kl:
        assert batch.samples is not None, "this batch has no samples"
        surrogate, stats["kl"] = reverse_kl(batch.samples)
        loss = loss + lambda_kl * surrogate
    return loss, stats


def reverse_kl(samples: Groups) -> tuple[Tensor, Tensor]:
    """What has the gradient of KL(policy || reference) in expectation, and an estimate of that KL: `[g]` each."""
    steps, valid = samples.steps, samples.valid
    assert steps.old is not None, "this batch has no behaviour log-probs"
    assert steps.ref is not None, "this batch has no reference"
    h = total(steps.old - steps.ref, steps.mask)  # [g,k]
    alone = length(valid)[:, None] == 1
    above = torch.where(alone, h, left_out(replace(samples, reward=h)))
    return average(total(steps.logp, steps.mask) * above, valid), average(h, valid).detach()
