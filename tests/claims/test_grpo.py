"""GRPO on the token problem: what the mean and the deviation of a group are worth beside a gradient without them."""

import pytest

from tests.claims import tables
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("GRPO is far ahead of REINFORCE without a baseline", "grpo", "reinforce", margin=0.5),
    Claim("Where rewards have no offset of 5 the gap is much smaller", "gap", "gap, no offset", margin=0.4),
    Claim("An offset changes nothing for GRPO", "grpo", "grpo, no offset", within=1e-6),
    Claim("Even without an offset GRPO is ahead", "grpo, no offset", "reinforce, no offset", margin=0.1),
    Claim("Without the pull to the uniform reference it comes closer to the target", "grpo, no kl", "grpo"),
)


def once(seed: int) -> dict[str, float]:
    told = {}
    for name, offset in {"": 5.0, ", no offset": 0.0}.items():
        told[f"grpo{name}"] = tables.learned(tables.by_part("grpo", "group"), seed, offset=offset)
        told[f"reinforce{name}"] = tables.learned(tables.reinforce, seed, offset=offset)
        told[f"gap{name}"] = told[f"grpo{name}"] - told[f"reinforce{name}"]
    free = tables.by_part("grpo", "group", beta=0.0)
    return {**told, "grpo, no kl": tables.learned(free, seed, offset=5.0)}


@pytest.fixture(scope="module")
def figures():
    return measure("grpo", "grpo", once, CLAIMS, seeds=6)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
