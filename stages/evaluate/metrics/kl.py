"""KL divergence from the reference, estimated on the policy's own samples."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from stages.evaluate.metrics._rows import Confidence, Rows, spread
from stages.parts import part


@part(families=("text", "control", "vision", "tabular"), needs=("reference",), range=(-np.inf, np.inf), higher=False)
class Kl:
    """Monte Carlo estimates of KL(policy || reference) per answer, in nats, from samples of the policy.

        h  = logp - ref_logp            per answer, summed over its steps
        kl = mean(h)                    unbiased, may be negative on a small sample
        k3 = mean(exp(-h) - 1 + h)      unbiased too, never negative; noisy where |h| is large
        kl_per_token = sum(h) / sum(steps)

    Args:
        cap: -h is held to at most this many nats inside the exponential of k3, since one answer that the reference
            likes far better would otherwise decide the mean. It biases k3 downwards only where it bites.
        confidence: coverage of `lower` .. `upper`, a normal interval around `kl`.

    The answers must be samples of the policy as it is, at temperature 1 (`evaluate.kl_sampler`): of others, decoded
    at a lower temperature or chosen among several, `kl` is only their mean log-ratio.

    `update` takes `logp`, `ref_logp` (sums over steps, nats) and `steps` (their number), all `[n]`. With one row
    `standard_error`, `lower` and `upper` are left out. k3 is taken over whole answers; a mean of per-token k3 terms,
    which trainers log, is another number.

    >>> metric = Kl()
    >>> metric.update(logp=[-1.0, -2.0], ref_logp=[-2.0, -2.0], steps=[2, 2])
    >>> {key: round(value, 3) for key, value in metric.compute().items()}  # doctest: +NORMALIZE_WHITESPACE
    {'kl': 0.5, 'standard_error': 0.5, 'lower': -0.48, 'upper': 1.48, 'k3': 0.184, 'kl_per_token': 0.25}

    Source: J. Schulman, Approximating KL divergence, 2020 (k1 and k3).
    """

    def __init__(self, *, cap: Annotated[float, Field(gt=0, le=700)] = 20.0, confidence: Confidence = 0.95) -> None:
        self.cap, self.confidence = cap, confidence
        self.rows = Rows("kl")

    def update(self, logp: Sequence[float], ref_logp: Sequence[float], steps: Sequence[int]) -> None:
        """Add rows."""
        self.rows.add(logp=logp, ref_logp=ref_logp, steps=steps)

    def compute(self) -> dict[str, float]:
        """KL in nats, its error and interval, k3, and nats per token."""
        h = self.rows["logp"] - self.rows["ref_logp"]
        tokens = max(1.0, float(self.rows["steps"].sum()))  # a policy that only ever stops has no token
        k3 = np.expm1(np.minimum(-h, self.cap)) - np.minimum(-h, self.cap)
        found = {"kl": float(h.mean()), **spread(h, self.confidence)}
        return found | {"k3": float(k3.mean()), "kl_per_token": float(h.sum()) / tokens}
