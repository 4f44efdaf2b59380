"""RSO's hinge-norm: a hinge on the reference-normalised margin, for pairs of rejection-sampled answers."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs
from stages.parts import part
from stages.reduce import expected, log_ratio, pair_stats


@part(paper="arXiv 2309.06657", equation="hinge-norm", needs=("reference",))
def rso(
    batch: Pairs,
    *,
    gamma: Annotated[float, Field(gt=0)] = 0.05,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Statistical Rejection Sampling Optimization, the hinge-norm loss.

        h = sum_t (logp - ref)          z = gamma * (h_chosen - h_rejected)
        loss = max(0, 1 - z)

    The paper's other loss, sigmoid-norm, is `dpo` at beta = gamma; its pairs come from the sampler `rejection` and the
    pairing `random_pairs`. With P(chosen preferred) = p the loss is its expectation over the label.

    Args:
        batch: pairs with reference log-probs; steps `[b,t]` in nats.
        gamma: reciprocal of the lead, in nats an answer, that the winner must have. Not the beta of the sampler.
            Paper: 0.05.

    Returns:
        loss `[b]`, 1 at policy = reference, 0 with no gradient beyond the lead; and TRL's statistics `[b]`.

    Time is summed: the implicit reward is that of the whole answer.

    Differences from the paper: none (soft labels are the expectation of its loss over the label).

    Example: h_chosen = 5, h_rejected = 0 and gamma = 0.05: z = 0.25 and the loss is 0.75.

    >>> import torch
    >>> from stages.batches import Steps
    >>> zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    >>> pairs = Pairs(Steps(torch.full((1, 1), 5.0), mask, ref=zero), Steps(zero, mask, ref=zero))
    >>> rso(pairs)[0]
    tensor([0.7500])

    Source: Liu et al., Statistical Rejection Sampling Improves Preference Optimization, ICLR 2024, arXiv 2309.06657.
    """
    chosen = gamma * log_ratio(batch.chosen)  # [b]
    rejected = gamma * log_ratio(batch.rejected)  # [b]
    z = chosen - rejected
    loss = expected(batch.prob, F.relu(1 - z), F.relu(1 + z))
    return loss, pair_stats(batch, chosen, rejected)
