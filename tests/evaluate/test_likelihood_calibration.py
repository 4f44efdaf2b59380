"""Calibration of the policy's own likelihoods and of its implicit reward, by hand and where the truth is known."""

import numpy as np
import pytest

from stages.evaluate.metrics.likelihood_calibration import LikelihoodCalibration


def run(metric: LikelihoodCalibration, **columns) -> dict[str, float]:
    rows = len(columns["chosen_logp"])
    rest = {name: np.zeros(rows) for name in ("rejected_logp", "chosen_ref", "rejected_ref")}
    rest |= {name: np.ones(rows, int) for name in ("chosen_steps", "rejected_steps", "pair_prob")}
    metric.update(**(rest | columns))
    return metric.compute()


def test_worked_numbers() -> None:
    """Token probabilities 0.9 and 0.7 (of two tokens, 0.49) in one bin of two, right and wrong: |0.5 - 0.8| = 0.3.

    One row more at 0.2, right, in the other bin: (2 * 0.3 + 1 * 0.8) / 3.
    """
    found = run(
        LikelihoodCalibration(bins=2),
        chosen_logp=np.log([0.9, 0.49, 0.2]),
        rejected_logp=np.log([0.1, 0.8, 0.1]),
        chosen_steps=[1, 2, 1],
    )
    assert found["likelihood_calibration"] == pytest.approx((2 * 0.3 + 0.8) / 3)
    assert found["confidence"] == pytest.approx(0.6)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_length_decides_nothing() -> None:
    """Answers of twice the tokens at the same mean probability."""
    random = np.random.default_rng(0)
    logp = {name: -random.exponential(size=50) for name in ("chosen_logp", "rejected_logp")}
    ones = {name: np.ones(50, int) for name in ("chosen_steps", "rejected_steps")}
    once = run(LikelihoodCalibration(), **logp, **ones)
    doubled = {name: 2 * values for name, values in (logp | ones).items()}
    assert run(LikelihoodCalibration(), **doubled)["likelihood_calibration"] == once["likelihood_calibration"]


def test_labels_of_the_implicit_reward_are_calibrated_at_its_own_beta_alone() -> None:
    """Labels drawn with sigmoid(beta * (h_w - h_l)); another beta is over- or underconfident."""
    random, beta = np.random.default_rng(1), 0.5
    chosen = random.normal(0, 4, 20_000)
    label = (random.uniform(size=20_000) < 1 / (1 + np.exp(-beta * chosen))).astype(float)
    errors = [
        run(LikelihoodCalibration(beta=b), chosen_logp=chosen, pair_prob=label)["implicit"] for b in (0.1, 0.5, 3.0)
    ]
    assert errors[1] < 0.01
    assert min(errors[0], errors[2]) > 0.08
