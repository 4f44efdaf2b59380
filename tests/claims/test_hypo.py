"""HyPO on a bandit of which half of the arms are in no pair: what a linear fit makes of them, and what its KL stops.

It costs four samples for each pair of every step; DPO draws none.
"""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from stages.batches import Groups, Hybrid
from stages.optimize.objectives.hypo import hypo
from tests.claims import bandits
from tests.claims.bandits import Bandit, Duels, Loss
from tests.claims.claim import Claim, measure

SEEDS, PAIRS, KNOWN, K = 6, 2000, 8, 4
SETTINGS = {0.1: 0.05, 0.5: 0.2, 1.0: 0.2, 2.0: 0.2, 4.0: 0.2}  # beta: lambda
CLAIMS = (
    Claim("HyPO's reward is far above DPO's (beta 0.1)", "reward, hypo 0.1", "reward, dpo 0.1", margin=1.5),
    Claim("So it is at beta 0.5", "reward, hypo 0.5", "reward, dpo 0.5", margin=1.5),
    Claim("HyPO's is above the reference's", "reward, hypo 0.1", "reward, reference"),
    Claim("DPO's is below the reference's", "reward, reference", "reward, dpo 0.1", margin=1.0),
    Claim("DPO is much further from the reference", "kl, dpo 0.1", "kl, hypo 0.1", margin=2.0),
    Claim("DPO puts nearly all its mass on arms in no pair", "uncovered, dpo 0.1", 0.9),
    Claim("HyPO puts little there", "covered, hypo 0.1", 0.6),
    Claim("DPO's KL still grows in the second half of training", "growth, dpo 0.1", 0.01),
    Claim("HyPO's does not, but for the noise of its samples", "growth, hypo 0.1", 0.0, within=0.02),
    Claim("At the best beta of each HyPO is ahead", "reward, hypo best", "reward, dpo best"),
    Claim("Over all betas HyPO is far ahead on average", "reward, hypo mean", "reward, dpo mean", margin=0.5),
)


def hybrid(world: Bandit, pairs: Duels, beta: float, lambda_kl: float) -> Loss:
    """The mean loss of HyPO, with K fresh samples of the policy for the prompt of each pair."""
    arms, kept = world.ref.shape[-1], bandits.merged(pairs, world.ref.shape[-1])
    noise = torch.Generator().manual_seed(0)

    def loss(logp: Tensor) -> Tensor:
        drawn = torch.multinomial(logp.detach().flatten(0, 1).exp()[kept.row], K, replacement=True, generator=noise)
        steps = bandits.steps(logp, world.ref, (kept.row[:, None] * arms + drawn).flatten())
        split = {name: value.unflatten(0, drawn.shape) for name, value in vars(steps).items() if value is not None}
        steps = replace(steps, **split, old=split["logp"].detach())
        samples = Groups(steps, reward=torch.zeros_like(drawn), valid=torch.ones_like(drawn, dtype=torch.bool))
        batch = Hybrid(bandits.batch(world, kept, logp), samples)
        return (kept.weight * hypo(batch, beta=beta, lambda_kl=lambda_kl)[0]).sum()

    return loss


def fitted(world: Bandit, loss: Loss) -> tuple[Tensor, Tensor]:
    """The policy, and by which share its KL grew in the second half of training, each the mean of 100 steps: `[s]`."""
    seen: list[Tensor] = []
    found = bandits.fit(world, loss, watch=lambda update, logp: seen.append(bandits.kl(logp, world.ref)))
    return found, torch.stack(seen[-100:]).mean(0) / torch.stack(seen[100:200]).mean(0) - 1


@cache
def measured() -> list[dict[str, float]]:
    """Figures of all seeds at once."""
    world, behaviour = bandits.covered(range(SEEDS), known=KNOWN)
    pairs = bandits.duels(world, PAIRS, behaviour=behaviour)
    figures = {"reward, reference": bandits.reward(world, world.ref)}
    for name in ("hypo", "dpo"):
        for beta, lambda_kl in SETTINGS.items():
            loss = hybrid(world, pairs, beta, lambda_kl if name == "hypo" else 0.0)
            policy, growth = fitted(world, loss)
            uncovered = bandits.share(policy, slice(KNOWN, None))
            told = {"reward": bandits.reward(world, policy), "kl": bandits.kl(policy, world.ref)}
            told |= {"uncovered": uncovered, "covered": 1 - uncovered, "growth": growth}
            figures |= {f"{figure}, {name} {beta:g}": value for figure, value in told.items()}
        each = torch.stack([figures[f"reward, {name} {beta:g}"] for beta in SETTINGS])
        figures |= {f"reward, {name} best": each.amax(0), f"reward, {name} mean": each.mean(0)}
    return bandits.told(figures)


@pytest.fixture(scope="module")
def figures():
    return measure("hypo", "hypo", lambda seed: measured()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
