"""AlignProp on the digits: a random number of steps with a gradient, against one step and against DDPO."""

import pytest

from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim(
        "AlignProp through a random number of steps, about 8 of 10, is ahead of the last step alone",
        "alignprop",
        "one step",
    ),
    Claim("AlignProp is ahead of DDPO from as many images", "alignprop", "ddpo", margin=0.1),
    Claim("One step alone is ahead of DDPO as well", "one step", "ddpo"),
    Claim("AlignProp is ahead of back-propagation through all 10 steps", "alignprop", "all steps"),
    Claim("90% of the samples are still read as what was asked", "right, alignprop", 0.9),
)


def once(seed: int) -> dict[str, float]:
    told = {"base": digits.look(digits.policy(seed))["brightness"], "ddpo": runs.ddpo(seed)[320]["brightness"]}
    arms = {"alignprop": {"mean": 0.8, "spread": 0.1}, "one step": {"mean": 0.1, "spread": 0.0}}
    arms |= {"all steps": {"mean": 1.0, "spread": 0.0}, "as published": {}}
    for name, settings in arms.items():
        after = runs.back_propagated(seed, "alignprop", **settings)
        told |= {name: after["brightness"], f"own, {name}": after["own"], f"right, {name}": after["right"]}
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("alignprop", "alignprop", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
