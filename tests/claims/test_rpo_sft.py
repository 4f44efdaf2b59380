"""RPO where half of the answers are in no pair and only look good: its reward over a sweep of beta, beside DPO's."""

from functools import cache

import pytest
import torch

from tests.claims import bandits
from tests.claims.claim import Claim, measure

SEEDS, WEIGHT = 6, 0.2  # of the likelihood term: eta * beta
BETAS = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
CLAIMS = (
    Claim(
        "At beta 0.1 DPO falls for answers that nobody compared and RPO does not",
        "reward, rpo, 0.1",
        "reward, dpo, 0.1",
        margin=1.0,
    ),
    Claim("At beta 0.5 too", "reward, rpo, 0.5", "reward, dpo, 0.5", margin=1.0),
    Claim("Their probability: DPO's is far higher", "uncovered, dpo, 0.5", "uncovered, rpo, 0.5", margin=0.3),
    Claim("The likelihood of chosen answers falls far less", "chosen, rpo, 0.5", "chosen, dpo, 0.5", margin=3.0),
    Claim("RPO is ahead of SFT at beta 0.5", "reward, rpo, 0.5", "sft"),
    Claim("The worst beta of a sweep costs RPO far less", "worst, rpo", "worst, dpo", margin=1.0),
    Claim("Over the sweep its mean is higher", "mean, rpo", "mean, dpo", margin=0.3),
    Claim(
        "At the best beta of each RPO is ahead",
        "best, rpo",
        "best, dpo",
        tried="beta 0.1 to 8: a large beta does for DPO what the term does for RPO",
    ),
)


@cache
def figures() -> list[dict[str, float]]:
    """Log-linear policies, 2,000 pairs of covered answers, 300 steps."""
    world, behaviour = bandits.covered(range(SEEDS))
    pairs = bandits.duels(world, 2000, behaviour=behaviour)
    seen = bandits.merged(pairs, world.ref.shape[-1])
    rewards: dict[str, list[torch.Tensor]] = {"rpo": [], "dpo": []}
    told = {"sft": bandits.reward(world, bandits.fit(world, bandits.sft(world, pairs)))}
    for beta in BETAS:
        for name, part, settings in (("rpo", "rpo_sft", {"eta": WEIGHT / beta}), ("dpo", "dpo", {})):
            policy = bandits.fit(world, bandits.by_part(world, pairs, part, beta=beta, **settings))
            rewards[name].append(bandits.reward(world, policy))
            told[f"reward, {name}, {beta:g}"] = rewards[name][-1]
            told[f"uncovered, {name}, {beta:g}"] = bandits.share(policy, slice(8, None))
            logp = bandits.batch(world, seen, policy).chosen.logp[:, 0]
            told[f"chosen, {name}, {beta:g}"] = bandits.by_seed(world, seen, logp)
    for name, values in rewards.items():
        each = torch.stack(values)
        told |= {f"worst, {name}": each.amin(0), f"best, {name}": each.amax(0), f"mean, {name}": each.mean(0)}
    return bandits.told(told)


@pytest.fixture(scope="module")
def measured():
    return measure("rpo-sft", "rpo_sft", lambda seed: figures()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, measured) -> None:
    assert claim.shows(measured) == (not claim.tried)
