"""RLOO on tables: the variance of its gradient against the exact one in a bandit, and the token problem."""

import pytest

from tests.claims import tables
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("RLOO is far ahead of REINFORCE without a baseline", "rloo", "reinforce", margin=0.5),
    Claim(
        "Where prompts differ in their rewards REINFORCE's gradient varies ten times as much",
        "variance over rloo's, reinforce",
        10.0,
    ),
    Claim(
        "What all rewards of a prompt have in common changes nothing for RLOO",
        "variance, rloo",
        "variance, rloo, no offset",
        within=1e-6,
    ),
    Claim("The mean of 4,000 of its estimates is the exact gradient", "bias, rloo", 0.0, within=0.03),
    Claim(
        "Where all rewards have mean 0 it varies less than REINFORCE",
        "variance, reinforce, no offset",
        "variance, rloo, no offset",
        tried="four samples: a baseline of three rewards has a variance of its own, and 0 is the right one",
    ),
)


def once(seed: int) -> dict[str, float]:
    told = {"rloo": tables.learned(tables.by_part("rloo", "leave_one_out"), seed, offset=5.0)}
    told["reinforce"] = tables.learned(tables.reinforce, seed, offset=5.0)
    free = tables.by_part("rloo", "leave_one_out", beta=0.0)
    for name, offset in {"": 5.0, ", no offset": 0.0}.items():
        for method, loss in {"rloo": free, "reinforce": tables.reinforce}.items():
            figures = tables.estimated(loss, seed, offset=offset)
            told |= {f"{figure}, {method}{name}": value for figure, value in figures.items()}
    ratio = told["variance, reinforce"] / told["variance, rloo"]
    return {**told, "variance over rloo's, reinforce": ratio}


@pytest.fixture(scope="module")
def figures():
    return measure("rloo", "rloo", once, CLAIMS, seeds=6)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
