"""DPO on bandits whose optimum is known in closed form, beside likelihood of the chosen answers."""

from functools import cache

import pytest

from tests.claims import bandits
from tests.claims.claim import Claim, measure

SEEDS = 6
CLAIMS = (
    Claim("DPO earns far more reward than SFT on the chosen answers of the same pairs", "dpo", "sft", margin=1.0),
    Claim("At beta 1 too", "beta 1", "sft", margin=0.8),
    Claim("At beta 1 its reward is that of the closed form", "beta 1", "closed form, beta 1", within=0.15),
    Claim("Its policy lies near the closed form in total variation", "variation, beta 1", 0.0, within=0.2),
    Claim("With exact probabilities instead of drawn labels it is the closed form", "regret, exact", 0.0, within=1e-3),
    Claim("A larger beta stays closer to the reference", "kl, dpo", "kl, beta 1", margin=0.3),
)


@cache
def figures() -> list[dict[str, float]]:
    """20,000 pairs of the reference's own answers, a table of logits, 400 steps."""
    world = bandits.make(range(SEEDS))
    pairs = bandits.duels(world, 20_000)

    def fit(loss, updates=400):
        return bandits.fit(world, loss, tabular=True, updates=updates)

    half, one = (fit(bandits.by_part(world, pairs, "dpo", beta=beta)) for beta in (0.5, 1.0))
    exact = fit(bandits.by_part(world, bandits.expected(world), "dpo", beta=1.0), updates=800)
    best = bandits.optimum(world, 1.0)
    return bandits.told(
        {
            "dpo": bandits.reward(world, half),
            "beta 1": bandits.reward(world, one),
            "sft": bandits.reward(world, fit(bandits.sft(world, pairs))),
            "closed form, beta 1": bandits.reward(world, best),
            "variation, beta 1": bandits.variation(one, best),
            "regret, exact": bandits.regret(world, exact, 1.0),
            "kl, dpo": bandits.kl(half, world.ref),
            "kl, beta 1": bandits.kl(one, world.ref),
        }
    )


@pytest.fixture(scope="module")
def measured():
    return measure("dpo", "dpo", lambda seed: figures()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, measured) -> None:
    assert claim.shows(measured) == (not claim.tried)
