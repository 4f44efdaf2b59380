"""PRDP on the digits: reward differences need no baseline, whatever a prompt's rewards have in common."""

from dataclasses import replace
from functools import partial

import pytest
from torch import Tensor

from stages.optimize.advantages.group import group
from stages.optimize.objectives.ddpo import ddpo
from stages.policies.image import Policy
from stages.policies.image.sampling import Rollout
from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

ROUNDS, UPDATES, OFFSET = 50, 2, 0.25  # half of a class's number in brightness, whose unit is twice the panel's
SETTINGS = {"likelihood": "trajectory", "trajectory_steps": "all"}

CLAIMS = (
    Claim(
        "With offsets PRDP is far ahead of DDPO with one baseline for all", "prdp, offset", "ddpo, global, offset", 0.3
    ),
    Claim("An offset of each prompt's rewards changes nothing at all", "prdp, offset", "prdp", within=0.0),
    Claim("DDPO with one baseline for all fails with offsets", "ddpo, group", "ddpo, global, offset", 0.3),
    Claim("A smaller beta gains more reward", "prdp", "prdp, beta 0.5"),
    Claim("A smaller beta pays with the quality guard", "own, prdp, beta 0.5", "own, prdp"),
)


def globally(found: Rollout, reward: Tensor, *, policy: Policy) -> Tensor:
    """DDPO whose advantages are taken over all samples of all prompts."""
    everything = runs.one_group(found, policy, reward)
    losses, _ = ddpo(replace(everything, advantage=group(everything)), clip=1e-2)
    return losses.mean()


def once(seed: int) -> dict[str, float]:
    told = {"base": digits.look(digits.policy(seed))["brightness"]}
    arms = {"prdp": (0.15, 0.0), "prdp, offset": (0.15, OFFSET), "prdp, beta 0.5": (0.5, 0.0)}
    for name, (beta, offset) in arms.items():
        policy, reference = digits.policy(seed, **SETTINGS), digits.policy(seed, **SETTINGS)
        with runs.offset(offset):
            runs.live(policy, reference, "prdp", seed=seed, rounds=ROUNDS, updates=UPDATES, beta=beta, clip=1e-2)
        told |= {name: (after := digits.look(policy))["brightness"], f"own, {name}": after["own"]}
    policy = digits.policy(seed, **SETTINGS)
    runs.by_hand(policy, partial(globally, policy=policy), seed=seed, rounds=ROUNDS, updates=UPDATES, offset=OFFSET)
    told["ddpo, global, offset"] = digits.look(policy)["brightness"]
    return {**told, "ddpo, group": runs.ddpo(seed)[4000]["brightness"]}


@pytest.fixture(scope="module")
def figures():
    return measure("prdp", "prdp", once, CLAIMS, seeds=3)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
