"""Calibration of predicted preference probabilities: expected calibration error, Brier score, log-likelihood."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from stages.evaluate.metrics._bins import bins, both_orders, ece
from stages.evaluate.metrics._rows import Rows
from stages.parts import part


@part(paper="arXiv 1706.04599", equation="3", needs=("scores",), range=(0.0, 1.0), higher=False)
class Calibration:
    """How well a predicted P(chosen is better) agrees with the labels.

        calibration    = sum over bins of (share of rows) * |mean label - mean prediction|     (ECE, equal widths)
        brier          = mean (prediction - label)^2
        log_likelihood = mean of label * log q + (1 - label) * log(1 - q), in nats             q: clipped prediction
        accuracy       = share of pairs with prediction and label on the same side of 1/2, ties 1/2

    Every pair enters the bins in both orders, as (p, label) and (1 - p, 1 - label). "Chosen" is always the better
    side, so in one order alone the label is near 1 whatever was predicted, and a perfect model would look wrong.
    The other three figures do not depend on the order.

    Args:
        bins: number of bins of equal width on 0..1. Paper: 15; 10 here, since held-out sets are small.
        floor: predictions are held to floor .. 1 - floor inside the logarithm.

    `update` takes `predicted` and `pair_prob` (the label, soft or hard), both `[m]`. `table()` gives the bins.

    >>> metric = Calibration(bins=2)
    >>> metric.update(predicted=[0.9, 0.7], pair_prob=[1.0, 0.5])
    >>> {key: round(value, 3) for key, value in metric.compute().items()}
    {'calibration': 0.05, 'brier': 0.025, 'log_likelihood': -0.443, 'accuracy': 0.75}

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv 1706.04599.
    """

    def __init__(
        self,
        *,
        bins: Annotated[int, Field(ge=1)] = 10,
        floor: Annotated[float, Field(gt=0, lt=0.5)] = 1e-6,
    ) -> None:
        self.bins, self.floor = bins, floor
        self.rows = Rows("calibration")

    def update(self, predicted: Sequence[float], pair_prob: Sequence[float]) -> None:
        """Add rows."""
        self.rows.add(predicted=predicted, pair_prob=pair_prob)

    def table(self) -> list[dict[str, float]]:
        """The reliability diagram: for each bin with rows its edges, `predicted` and `label` means, and `count`."""
        predicted, label = (both_orders(self.rows[name]) for name in ("predicted", "pair_prob"))
        return bins(predicted, label, self.bins)

    def compute(self) -> dict[str, float]:
        """ECE, Brier score, log-likelihood and accuracy."""
        p, label = self.rows["predicted"], self.rows["pair_prob"]
        q = np.clip(p, self.floor, 1 - self.floor)
        return {
            "calibration": ece(both_orders(p), both_orders(label), self.bins),
            "brier": float(np.mean((p - label) ** 2)),
            "log_likelihood": float(np.mean(label * np.log(q) + (1 - label) * np.log1p(-q))),
            "accuracy": float(np.mean((np.sign((p - 0.5) * (label - 0.5)) + 1) / 2)),
        }
