"""CoPG on bandits whose arms somebody else drew: it needs neither fresh samples nor importance weights."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from stages import parts
from tests.claims import bandits, draws
from tests.claims.claim import Claim, measure

BETA, K, SEEDS = 0.5, 4, 5

CLAIMS = (
    Claim("From arms drawn uniformly CoPG finds the optimum", "copg", 0.0, within=1e-3),
    Claim("A policy gradient of the same arms without a baseline stays away from it", "no baseline", "copg", 0.02),
    Claim("RLOO, which draws its own arms, is no nearer", "rloo", "copg"),
    Claim(
        "DPO of the same arms two by two, which hears their order alone, stays away from it", "dpo", "copg, two", 0.02
    ),
    Claim("So does IPO", "ipo", "copg, two", 0.02),
    Claim("From the reference's arms CoPG finds it too", "copg, reference's arms", 0.0, within=1e-3),
)


def unbased(world: bandits.Bandit, behaviour: Tensor) -> bandits.Loss:
    """The policy gradient of regularized rewards, without a baseline and blind to who drew the arms."""
    noise = torch.Generator().manual_seed(0)

    def loss(logp: Tensor) -> Tensor:
        batch = draws.grouped(world, draws.draw(behaviour, K, noise), logp, behaviour)
        taken, refs = batch.steps.logp.squeeze(-1), batch.steps.ref.squeeze(-1)
        worth = (batch.reward - BETA * (taken - refs)).detach()
        return -(worth * taken).mean(-1).sum() / world.reward.shape[1]

    return loss


def ordered(world: bandits.Bandit, behaviour: Tensor, objective: str, **settings: Any) -> bandits.Loss:
    """A pairwise objective on two arms a prompt, the one of the higher reward first."""
    noise, part = torch.Generator().manual_seed(0), parts.find("objective", objective)

    def loss(logp: Tensor) -> Tensor:
        arms = draws.draw(behaviour, 2, noise)
        better = world.reward.gather(-1, arms).argsort(-1, descending=True)
        chosen, rejected = arms.gather(-1, better).flatten(0, 1).unbind(-1)
        kept = chosen != rejected
        pairs = bandits.Duels(torch.arange(len(chosen))[kept], chosen[kept], rejected[kept], torch.ones(()))
        losses = part.function(bandits.batch(world, pairs, logp), **settings)[0]
        return losses.sum() / world.reward.shape[1]

    return loss


@cache
def measured() -> list[dict[str, float]]:
    world = bandits.make(range(SEEDS), prompts=6, arms=8, scale=1.0)
    uniform = torch.zeros_like(world.ref).log_softmax(-1)
    losses = {
        "copg": draws.online(world, "copg", k=K, seed=0, behaviour=uniform, beta=BETA),
        "copg, reference's arms": draws.online(world, "copg", k=K, seed=0, behaviour=world.ref, beta=BETA),
        "no baseline": unbased(world, uniform),
        "copg, two": draws.online(world, "copg", k=2, seed=0, behaviour=uniform, beta=BETA),
        "dpo": ordered(world, uniform, "dpo", beta=BETA),
        "ipo": ordered(world, uniform, "ipo", tau=BETA, length_normalize=False),
        "rloo": draws.online(world, "rloo", k=K, seed=0, beta=BETA),
    }
    figures = {"reference": bandits.regret(world, world.ref, BETA)}
    for name, loss in losses.items():
        policy = bandits.fit(world, loss, tabular=True, updates=1500, lr=0.02)
        figures[name] = bandits.regret(world, policy, BETA)
    return bandits.told(figures)


@pytest.fixture(scope="module")
def figures():
    return measure("copg", "copg", lambda seed: measured()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
