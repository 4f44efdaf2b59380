"""DRaFT on the digits: the reward's own gradient against a policy gradient from as many images."""

import pytest

from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("DRaFT through all steps is far ahead of DDPO from as many images", "draft, k 10", "ddpo", margin=0.1),
    Claim("DRaFT through the last step alone is ahead too", "draft, k 1", "ddpo", margin=0.05),
    Claim(
        "On this smooth reward more steps gain more than one, unlike the paper's finding on Stable Diffusion",
        "draft, k 10",
        "draft, k 1",
    ),
    Claim("320 images take DRaFT further than 2,000 take DDPO", "draft, k 10", "ddpo, 2000 images"),
    Claim("90% of the samples are still read as what was asked", "right, draft, k 10", 0.9),
)


def once(seed: int) -> dict[str, float]:
    ddpo = runs.ddpo(seed)
    told = {"base": digits.look(digits.policy(seed))["brightness"]}
    told |= {"ddpo": ddpo[320]["brightness"], "ddpo, 2000 images": ddpo[2000]["brightness"]}
    for k in (1, 10):
        after = runs.back_propagated(seed, "draft", k=k)
        told |= {f"draft, k {k}": after["brightness"], f"own, draft, k {k}": after["own"]}
        told[f"right, draft, k {k}"] = after["right"]
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("draft", "draft", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
