"""How a reference ranks labelled pairs, and how well the best policy near it would: what needs no training to know.

All of it is sums `[m]` of log-probs in nats: R of chosen and rejected under the reference, L under a policy. Everything
stays in log space, since the odds to the power 1/beta overflow at beta = 0.01.

Source: Chen et al., Preference Learning Algorithms Do Not Learn Preference Rankings, NeurIPS 2024, arXiv 2405.19534.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)  # the paper's grid for the idealized accuracy
CLIP = 0.001  # label probabilities are held to CLIP .. 1 - CLIP, so that a certain label has finite odds
THIRDS = ("easy", "middle", "hard")


def idealized(reference: Floats, prob: Floats, beta: float, clip: float = CLIP) -> Bools:
    """Whether the optimum of RLHF or DPO at this beta ranks each pair right: R_w - R_l + logit(p) / beta > 0.

    Args:
        reference: R_w - R_l of each pair, summed or by step.
        prob: P(chosen is better), the share of raters; 0.75 where nobody counted them.
        beta: of the objective.
        clip: see `CLIP`.

    >>> idealized(np.array([-3.0, -3.0]), np.array([0.9, 0.9]), 1.0), idealized(np.array([-3.0]), np.array([0.9]), 0.1)
    (array([False, False]), array([ True]))
    """
    return reference + logit(np.clip(prob, clip, 1 - clip)) / beta > 0


def over_betas(reference: Floats, prob: Floats, clip: float = CLIP) -> dict[str, float]:
    """The lowest, median and highest idealized accuracy over `BETAS`.

    >>> over_betas(np.array([-3.0, 1.0]), np.array([0.9, 0.9]))
    {'min': 0.5, 'median': 0.5, 'max': 1.0}
    """
    found = [float(np.mean(idealized(reference, prob, beta, clip))) for beta in BETAS]
    return {"min": min(found), "median": float(np.median(found)), "max": max(found)}


def demanded(reference: Floats, beta: float) -> Floats:
    """The DPO loss that a pair must reach to be ranked right, log(1 + e^(-beta * c)) with difficulty c = R_l - R_w.

    L_w >= L_l if, and only if, the loss is at most this; where the reference is far from right it is tiny.

    >>> demanded(np.array([0.0, -50.0]), 0.1).round(4).tolist()
    [0.6931, 0.0067]
    """
    return np.logaddexp(0.0, beta * reference)


def thirds(reference: Floats) -> dict[str, Bools]:
    """The pairs that the reference ranks wrong, in three equal parts by difficulty c = R_l - R_w, easiest first.

    A part that would be empty is left out.

    >>> {name: part.tolist() for name, part in thirds(np.array([2.0, -1.0, -9.0, -4.0])).items()}
    {'easy': [False, True, False, False], 'middle': [False, False, False, True], 'hard': [False, False, True, False]}
    """
    wrong = np.flatnonzero(reference < 0)
    order = wrong[np.argsort(-reference[wrong], kind="stable")]
    masks = {name: np.isin(np.arange(len(reference)), part) for name, part in zip(THIRDS, np.array_split(order, 3))}
    return {name: mask for name, mask in masks.items() if mask.any()}


def flips(reference: Floats, policy: Floats) -> dict[str, float]:
    """Shares of all pairs by whether the reference and then the policy ranks them right; they sum to 1.

    >>> flips(np.array([1.0, 1.0, -1.0, -1.0]), np.array([1.0, 1.0, 1.0, -1.0]))
    {'right_right': 0.5, 'right_wrong': 0.0, 'wrong_right': 0.25, 'wrong_wrong': 0.25}
    """
    sides = {"right": reference >= 0, "wrong": reference < 0}
    ours = {"right": policy >= 0, "wrong": policy < 0}
    return {f"{a}_{b}": float(np.mean(sides[a] & ours[b])) for a in sides for b in ours}


def exact(scores: list[list[float]]) -> float:
    """Share of rankings whose members, told best first, have falling scores: the whole order, not a pair of it.

    >>> exact([[-1.0, -2.0, -3.0], [-1.0, -3.0, -2.0]])
    0.5
    """
    return sum(row == sorted(row, reverse=True) for row in scores) / len(scores)


def told(chosen: Floats, rejected: Floats, w_steps: Floats, l_steps: Floats, prob: Floats) -> dict[str, float]:
    """What is known of pairs before training, from the reference's log-probs: accuracies, and quartiles of difficulty.

    Args:
        chosen: R of the chosen answers, summed.
        rejected: R of the rejected ones.
        w_steps: steps of the chosen answers, at least 1.
        l_steps: of the rejected ones.
        prob: P(chosen is better).
    """
    summed, by_step = chosen - rejected, chosen / w_steps - rejected / l_steps
    quartiles = zip(("lower", "median", "upper"), np.quantile(-summed, (0.25, 0.5, 0.75)))
    return {
        "accuracy": float(np.mean(summed >= 0)),
        "normalized_accuracy": float(np.mean(by_step >= 0)),
        **{f"idealized_{name}": value for name, value in over_betas(summed, prob).items()},
        **{f"normalized_idealized_{name}": value for name, value in over_betas(by_step, prob).items()},
        **{f"difficulty_{name}": float(value) for name, value in quartiles},
    }
