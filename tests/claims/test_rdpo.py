"""rDPO on bandits with flipped labels: how far from the regularized optimum, beside DPO and conservative DPO."""

from functools import cache

import pytest
import torch

from tests.claims import bandits
from tests.claims.claim import Claim, measure

SEEDS, BETA = 8, 0.5
RATES = (0.1, 0.3, 0.4)
CLAIMS = (
    Claim(
        "With 30% of the labels flipped rDPO is far closer to the optimum than DPO", "dpo, 0.3", "rdpo, 0.3", margin=0.5
    ),
    Claim("With 10% too", "dpo, 0.1", "rdpo, 0.1", margin=0.05),
    Claim("With 40% too", "dpo, 0.4", "rdpo, 0.4", margin=0.5),
    Claim("Conservative DPO is further off than DPO: 10%", "smoothed, 0.1", "dpo, 0.1", margin=0.1),
    Claim("Conservative DPO is further off than DPO: 40%", "smoothed, 0.4", "dpo, 0.4", margin=0.1),
    Claim("From 10% to 40% of flips DPO loses more than rDPO", "lost, dpo", "lost, rdpo", margin=0.5),
    Claim(
        "rDPO is nearly flat in the rate",
        "lost, rdpo",
        0.0,
        within=0.1,
        tried="2,000 pairs: unbiased, but at 40% its variance is 16 times that at 10%",
    ),
    Claim(
        "Flips in half of the prompts, met at their mean rate: rDPO is ahead of DPO",
        "dpo, half",
        "rdpo, half",
        margin=0.3,
    ),
    Claim(
        "At 30% rDPO is ahead of DPO with a fifth of the beta",
        "dpo, fifth of beta",
        "rdpo, 0.3",
        tried="even flips shrink the margins alike: a smaller beta makes up for them, for who knows which",
    ),
)


@cache
def figures() -> list[dict[str, float]]:
    """Regret beside the optimum of E[r] - beta * KL; log-linear policies, 2,000 pairs, 300 steps, one beta for all."""
    world = bandits.make(range(SEEDS))
    clean = bandits.duels(world, 2000)

    def regret(pairs, objective, beta=BETA, **settings):
        policy = bandits.fit(world, bandits.by_part(world, pairs, objective, beta=beta, **settings))
        return bandits.regret(world, policy, BETA)

    told = {}
    for rate in RATES:
        noisy = bandits.flipped(clean, rate)
        told[f"rdpo, {rate:g}"] = regret(noisy, "rdpo", epsilon=rate)
        told[f"dpo, {rate:g}"] = regret(noisy, "dpo")
        told[f"smoothed, {rate:g}"] = regret(noisy, "dpo", label_smoothing=rate)
    told["dpo, fifth of beta"] = regret(bandits.flipped(clean, 0.3), "dpo", beta=BETA / 5)
    prompts = world.ref.shape[1]
    uneven = bandits.flipped(clean, torch.where(clean.row % prompts < prompts // 2, 0.45, 0.05))
    told["rdpo, half"], told["dpo, half"] = regret(uneven, "rdpo", epsilon=0.25), regret(uneven, "dpo")
    told |= {f"lost, {name}": told[f"{name}, 0.4"] - told[f"{name}, 0.1"] for name in ("dpo", "rdpo")}
    return bandits.told(told)


@pytest.fixture(scope="module")
def measured():
    return measure("rdpo", "rdpo", lambda seed: figures()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, measured) -> None:
    assert claim.shows(measured) == (not claim.tried)
