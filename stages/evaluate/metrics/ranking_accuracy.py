"""Ranking accuracy: how often the policy gives the preferred answer the higher likelihood, and how often it could."""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from stages import ranking
from stages.evaluate.metrics._rows import Confidence, OfPairs, wilson
from stages.parts import part


@part(
    paper="arXiv 2405.19534",
    families=("text", "image", "vision"),
    needs=("reference", "scores"),
    range=(0.0, 1.0),
)
class RankingAccuracy(OfPairs):
    """Shares of held-out pairs that are ranked right, each in 0..1.

        ranking_accuracy            mean 1[L_w >= L_l]                      L: log-prob under the policy
        normalized_ranking_accuracy mean 1[L_w/|w| >= L_l/|l|]
        reward_accuracy             mean 1[h_w > h_l], ties 1/2             h = L - R, R under the reference
        reference_accuracy          mean 1[R_w >= R_l]
        idealized_accuracy          mean 1[R_w - R_l + logit(p)/beta > 0]   the optimum of RLHF or DPO at this beta
        normalized_idealized_accuracy                                       the same with R/|y|
        idealized_accuracy_min, _median, _max                               over beta in 0.01, 0.1, 1, 5, 10
        alignment_gap               idealized_accuracy - ranking_accuracy
        normalized_alignment_gap    the same of the normalized ones
        flipped                     of the pairs that the reference ranks wrong, the share the policy ranks right
        flipped_easy, _middle, _hard  the same by thirds of their difficulty R_l - R_w
        right_right, right_wrong, wrong_right, wrong_wrong   of all pairs: the reference, then the policy

    A high reward accuracy says only that the policy moved the right way, not that it ranks right. `flipped` is left
    out where the reference ranks every pair right, and a third of it where it would be empty.

    Args:
        beta: of the objective that trained the policy.
        clip: label probabilities are held to clip .. 1 - clip, so that a certain label has finite odds. Paper: 0.001.
        confidence: coverage of `lower` .. `upper`, Wilson's interval around `ranking_accuracy`.

    Of an image policy L and R are surrogates, means over steps and over the same seeded draws for both sides and both
    policies; averaging over draws makes `reward_accuracy` the implicit accuracy of Diffusion-DPO.

    `update` takes, all `[m]`: `chosen_logp`, `rejected_logp`, `chosen_ref`, `rejected_ref` (sums, nats),
    `chosen_steps`, `rejected_steps`, and `pair_prob`, P(chosen is better). An answer without steps counts as one step.

    Differences from the paper: ties count 1/2 in the reward accuracy (the paper's strict count gives 0 to a policy
    that equals its reference); the idealized accuracy is computed from log-ratios, as the paper's equation has it.

    >>> metric = RankingAccuracy(beta=1.0)
    >>> metric.update(
    ...     chosen_logp=[-4.0, -3.0], rejected_logp=[-3.0, -5.0], chosen_ref=[-6.0, -3.0], rejected_ref=[-3.0, -5.0],
    ...     chosen_steps=[4, 1], rejected_steps=[2, 5], pair_prob=[0.99, 0.6],
    ... )
    >>> found = metric.compute()
    >>> [found[key] for key in ("ranking_accuracy", "normalized_ranking_accuracy", "reward_accuracy")]
    [0.5, 0.5, 0.75]
    >>> [found[key] for key in ("reference_accuracy", "idealized_accuracy", "alignment_gap", "flipped")]
    [0.5, 1.0, 0.5, 0.0]

    Source: Chen et al., Preference Learning Algorithms Do Not Learn Preference Rankings, NeurIPS 2024,
    arXiv 2405.19534.
    """

    def __init__(
        self,
        *,
        beta: Annotated[float, Field(gt=0)] = 0.1,
        clip: Annotated[float, Field(gt=0, lt=0.5)] = 0.001,
        confidence: Confidence = 0.95,
    ) -> None:
        self.beta, self.clip, self.confidence = beta, clip, confidence
        super().__init__("ranking_accuracy")

    def compute(self) -> dict[str, float]:
        """All shares over the pairs so far."""
        rows = self.rows
        w_steps, l_steps = (np.maximum(rows[f"{side}_steps"], 1) for side in ("chosen", "rejected"))
        policy = rows["chosen_logp"] - rows["rejected_logp"]  # [m] L_w - L_l
        reference = rows["chosen_ref"] - rows["rejected_ref"]  # [m] R_w - R_l
        by_step = rows["chosen_logp"] / w_steps - rows["rejected_logp"] / l_steps
        reference_by_step = rows["chosen_ref"] / w_steps - rows["rejected_ref"] / l_steps
        prob, wrong = rows["pair_prob"], reference < 0
        ideal = [np.mean(ranking.idealized(r, prob, self.beta, self.clip)) for r in (reference, reference_by_step)]
        found: dict[str, Any] = {
            "ranking_accuracy": np.mean(policy >= 0),
            "normalized_ranking_accuracy": np.mean(by_step >= 0),
            "reward_accuracy": np.mean((np.sign(policy - reference) + 1) / 2),
            "reference_accuracy": np.mean(reference >= 0),
            "idealized_accuracy": ideal[0],
            "normalized_idealized_accuracy": ideal[1],
            "alignment_gap": ideal[0] - np.mean(policy >= 0),
            "normalized_alignment_gap": ideal[1] - np.mean(by_step >= 0),
            **ranking.flips(reference, policy),
        }
        over_betas = ranking.over_betas(reference, prob, self.clip)
        found |= {f"idealized_accuracy_{name}": value for name, value in over_betas.items()}
        found["lower"], found["upper"] = wilson(float(np.mean(policy >= 0)), len(policy), self.confidence)
        if wrong.any():
            found["flipped"] = np.mean(policy[wrong] >= 0)
        found |= {f"flipped_{name}": np.mean(policy[third] >= 0) for name, third in ranking.thirds(reference).items()}
        return {key: float(value) for key, value in found.items()}
