"""What a series of looks at a policy in training tells: entropy that turns, mass that shrinks, likelihood that drifts.

The first two are the early signs of likelihood over-optimisation of Shi et al. 2024, arXiv 2410.11677.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def entropy(top: Tensor) -> Tensor:
    """Entropy in bits of the k most likely tokens among themselves: probabilities `[...,k] -> [...]`, log2 k at most.

    >>> entropy(torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.9, 0.0, 0.0, 0.0]]))
    tensor([2., 0.])
    """
    share = top / top.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1) / math.log(2)


def falls(series: Sequence[float]) -> int:
    """How many times in a row, up to now, a series that had risen above its start has fallen.

    >>> falls([2.0, 2.5, 2.4, 2.3]), falls([2.0, 2.5, 2.4, 2.6]), falls([2.0, 1.9, 1.8])
    (2, 0, 0)
    """
    count = 0
    while count + 1 < len(series) and series[-1 - count] < series[-2 - count]:
        count += 1
    return count if series[-1 - count] > series[0] else 0


def shrunk(mass: Sequence[float], spread: Sequence[float], share: float) -> bool:
    """Whether the mass of the top k has lost more than a share of what it was, and entropy does not fall with it.

    Where entropy falls too the policy only gets surer of a few tokens; where it does not, mass leaks into the tail.

    >>> shrunk([0.9, 0.8], [2.0, 2.1], 0.05), shrunk([0.9, 0.8], [2.0, 1.9], 0.05), shrunk([0.9, 0.88], [2, 2.1], 0.05)
    (True, False, False)
    """
    return len(mass) > 1 and mass[-1] < (1 - share) * mass[0] and spread[-1] >= spread[-2]
