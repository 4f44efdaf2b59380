"""Diffusion-DPO on the digits: preferences move the samples further than fine-tuning on the winners does."""

import pytest
import torch

from stages import feed
from stages.pairs import demonstrations
from stages.records import Pair
from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("Diffusion-DPO on best against worst of 4 brightens more than SFT on the same winners", "dpo", "sft", 0.05),
    Claim("SFT on the winners is above the base", "sft", "base"),
    Claim("Best against worst beats random pairs", "dpo", "dpo, random pairs"),
    Claim("The samples still are digits: 95% are read as what was asked", "right, dpo", 0.95),
    Claim("The quality guard falls by less than 0.1", "own, dpo", "own, base", margin=-0.1),
    Claim("The implicit reward orders held-out pairs", "held-out accuracy, dpo", 0.6),
    Claim("A beta of 10 instead of 1000 destroys the digits", "own, dpo", "own, dpo, beta 10", margin=1.0),
)


def implicit_accuracy(policy, reference, pairs: list[Pair], draws: int = 10) -> float:
    """Share of pairs whose implicit reward, averaged over seeded draws, is higher for the chosen."""
    gap = torch.zeros(len(pairs))
    with torch.no_grad():
        for draw in range(draws):
            items = [item for pair in pairs for item in feed.items(pair, draw)]  # chosen, rejected, chosen, ...
            steps = policy.log_probs(items, reference=reference)
            chosen, rejected = (steps.logp - steps.ref).view(-1, 2).unbind(1)
            gap += chosen - rejected
    return float((gap > 0).float().mean())


def once(seed: int) -> dict[str, float]:
    base = digits.policy(seed)
    asked, scored = runs.drawn(seed)
    widest, random = (runs.paired(name, asked, scored, seed) for name in ("best_worst", "random_pairs"))
    winners = demonstrations(asked, scored)
    unseen = runs.paired("random_pairs", *runs.held_out(seed), seed)
    arms = {
        "dpo": (widest, "dpo", {"beta": 1000.0}),
        "dpo, random pairs": (random, "dpo", {"beta": 1000.0}),
        "dpo, beta 10": (widest, "dpo", {"beta": 10.0}),
        "sft": (winners, "nll", {}),
    }
    before = digits.look(base)
    told = {"base": before["brightness"], "own, base": before["own"]}
    for name, (labelled, objective, settings) in arms.items():
        policy = digits.policy(seed)
        runs.offline(policy, base, labelled, objective, seed=seed, steps=300, batch=64, **settings)
        after = digits.look(policy)
        told |= {name: after["brightness"], f"own, {name}": after["own"], f"right, {name}": after["right"]}
        told |= {f"held-out accuracy, {name}": implicit_accuracy(policy, base, unseen)}
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("diffusion-dpo", "dpo", once, CLAIMS, seeds=3)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
