"""The bases that all claims start from are as good as the testbed asks."""

import pytest

from tests.claims import digits, runs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prediction", ["epsilon", "flow"])
def test_base(prediction: str, seed: int) -> None:
    policy = digits.policy(seed, prediction)
    figures = digits.look(policy) if prediction == "epsilon" else runs.flowed(policy)
    assert sum(weight.numel() for weight in policy.parameters().values()) == pytest.approx(339_000, abs=500)
    assert figures["right"] >= 0.98
    assert figures["brightness"] == pytest.approx(-0.389, abs=0.02)  # of the data
    assert figures["own"] > -0.1
