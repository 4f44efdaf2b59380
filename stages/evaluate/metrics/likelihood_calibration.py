"""Calibration of the policy itself: whether answers it finds likely are those it ranks right."""

from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.special import expit

from stages.evaluate.metrics._bins import both_orders, ece
from stages.evaluate.metrics._rows import OfPairs
from stages.parts import part


@part(
    paper="arXiv 2309.16240",
    equation="calibration, as the authors' code",
    families=("text", "vision"),
    needs=("reference", "scores"),
    range=(0.0, 1.0),
    higher=False,
)
class LikelihoodCalibration(OfPairs):
    """Two expected calibration errors of a policy on held-out pairs, without any other model.

        likelihood_calibration = ECE of exp(L_w / |w|) against 1[L_w / |w| > L_l / |l|]
        confidence, accuracy   = the means of the two
        implicit               = ECE of sigmoid(beta * (h_w - h_l)) against the label, both orders       h = L - R

    The first is the paper's: the confidence is the mean probability of a token of the chosen answer, and it is right
    where it is above the rejected answer's. Divergences that let a policy go further from its reference make it larger.
    The second asks whether the implicit reward is a Bradley-Terry probability.

    Args:
        beta: of the objective that trained the policy.
        bins: number of bins of equal width on 0..1. The authors' code: 10.

    `update` takes, all `[m]`: `chosen_logp`, `rejected_logp`, `chosen_ref`, `rejected_ref` (sums, nats),
    `chosen_steps`, `rejected_steps`, and `pair_prob`, P(chosen is better). An answer without steps counts as one step.

    >>> metric = LikelihoodCalibration(beta=1.0, bins=1)
    >>> metric.update(
    ...     chosen_logp=[-2.0, -1.0], rejected_logp=[-4.0, -1.0], chosen_ref=[-2.0, -1.0], rejected_ref=[-4.0, -1.0],
    ...     chosen_steps=[2, 1], rejected_steps=[2, 2], pair_prob=[1.0, 0.5],
    ... )
    >>> {key: round(value, 3) for key, value in metric.compute().items()}
    {'likelihood_calibration': 0.132, 'confidence': 0.368, 'accuracy': 0.5, 'implicit': 0.0}

    Source: Wang et al., Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence
    Constraints, ICLR 2024, arXiv 2309.16240.
    """

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)] = 0.1,
        bins: Annotated[int, Field(ge=1)] = 10,
    ) -> None:
        self.beta, self.bins = beta, bins
        super().__init__("likelihood_calibration")

    def compute(self) -> dict[str, float]:
        """Both errors, and the means of the first one's sides."""
        rows = self.rows
        chosen, rejected = (
            rows[f"{side}_logp"] / np.maximum(rows[f"{side}_steps"], 1) for side in ("chosen", "rejected")
        )
        confidence = np.exp(np.minimum(chosen, 0.0))
        right = (chosen > rejected).astype(float)
        margin = rows["chosen_logp"] - rows["chosen_ref"] - rows["rejected_logp"] + rows["rejected_ref"]
        predicted = expit(self.beta * margin)
        return {
            "likelihood_calibration": ece(confidence, right, self.bins),
            "confidence": float(confidence.mean()),
            "accuracy": float(right.mean()),
            "implicit": ece(both_orders(predicted), both_orders(rows["pair_prob"]), self.bins),
        }
