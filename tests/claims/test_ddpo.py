"""DDPO on the digits: more reward than reward-weighted regression from the same images, and then its hacking."""

from functools import partial

import pytest
import torch
from torch import Tensor

from stages.policies.image import Policy
from stages.policies.image.sampling import Rollout
from stages.reduce import average
from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("DDPO brightens more than RWR, tau 0.02, from 4,000 images each", "ddpo, 4000 images", "rwr, tau 0.02"),
    Claim("DDPO brightens more than RWR, tau 0.1, from 4,000 images each", "ddpo, 4000 images", "rwr, tau 0.1"),
    Claim("DDPO brightens above the base within 2,000 images", "ddpo, 2000 images", "base", margin=0.1),
    Claim(
        "Without a KL term DDPO ends in reward hacking: after 4,000 images the digits are gone",
        "own, base",
        "own, ddpo, 4000 images",
        margin=1.0,
    ),
    Claim("After 2,000 images 85% are still read as what was asked", "right, ddpo, 2000 images", 0.85),
)


def regressed(found: Rollout, reward: Tensor, *, policy: Policy, tau: float) -> Tensor:
    """RWR: the likelihood of the samples, weighted by a softmax of their rewards in the unit of brightness."""
    steps = policy.step_logp(found)
    return -((2 * reward / tau).flatten().softmax(0) * average(steps.logp, steps.mask)).sum()


def once(seed: int) -> dict[str, float]:
    base, seen = digits.look(digits.policy(seed)), runs.ddpo(seed)
    told = {"base": base["brightness"], "own, base": base["own"]}
    for count, figures in seen.items():
        told |= {f"ddpo, {count} images": figures["brightness"], f"own, ddpo, {count} images": figures["own"]}
        told[f"right, ddpo, {count} images"] = figures["right"]
    for tau in (0.02, 0.1):
        policy = digits.policy(seed, likelihood="trajectory")
        runs.by_hand(policy, partial(regressed, policy=policy, tau=tau), seed=seed, rounds=50, updates=2)
        figures = digits.look(policy)
        told |= {f"rwr, tau {tau}": figures["brightness"], f"own, rwr, tau {tau}": figures["own"]}
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("ddpo", "ddpo", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)


def test_rwr_with_equal_rewards_is_likelihood() -> None:
    policy = digits.policy(0, likelihood="trajectory")
    found = policy.rollout(digits.prompts(2), 2, seed=0)
    with torch.no_grad():
        steps = policy.step_logp(found)
        loss = regressed(found, torch.zeros(2, 2), policy=policy, tau=0.1)
    assert loss == pytest.approx(-float(average(steps.logp, steps.mask).mean()), abs=1e-5)
