"""Ranking accuracy of DPO and DPO-gamma on bandits whose reference is no guide, told by the metric itself."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from stages.evaluate.metrics.ranking_accuracy import RankingAccuracy
from stages.optimize.objectives.dpo_gamma import dpo_gamma
from tests.claims import bandits
from tests.claims.claim import Claim, measure

SEEDS = 5
SETTINGS = {
    "dpo, 0.5": {"beta": 0.5, "gamma": 1.0},  # gamma 1 is DPO
    "dpo, 1": {"beta": 1.0, "gamma": 1.0},
    "gamma 0.5": {"beta": 0.5, "gamma": 0.5},
    "gamma 0": {"beta": 0.5, "gamma": 0.0},
}
NAMES = {
    "accuracy": "ranking_accuracy",
    "reference": "reference_accuracy",
    "idealized": "idealized_accuracy",
    "rewarded": "reward_accuracy",
    "easy": "flipped_easy",
    "middle": "flipped_middle",
    "hard": "flipped_hard",
}
CLAIMS = (
    Claim(
        "Without its reference DPO-gamma ranks more pairs right than DPO",
        "accuracy, gamma 0",
        "accuracy, dpo, 0.5",
        margin=0.02,
    ),
    Claim("DPO ranks more pairs right than its reference", "accuracy, dpo, 0.5", "reference, dpo, 0.5", margin=0.1),
    Claim(
        "It ranks as many right as the idealized accuracy foretells",
        "accuracy, dpo, 0.5",
        "idealized, dpo, 0.5",
        within=0.02,
    ),
    Claim(
        "It stays below the idealized accuracy",
        "idealized, dpo, 0.5",
        "accuracy, dpo, 0.5",
        tried="3,000 pairs: in four of five seeds; features that fit the drawn labels may also rank a pair too many",
    ),
    Claim("A larger beta ranks fewer", "accuracy, dpo, 0.5", "accuracy, dpo, 1", margin=0.02),
    Claim(
        "The reward accuracy is far above the ranking accuracy", "rewarded, dpo, 0.5", "accuracy, dpo, 0.5", margin=0.1
    ),
    Claim(
        "Of pairs ranked wrong by the reference more easy ones flip than middling ones",
        "easy, dpo, 0.5",
        "middle, dpo, 0.5",
        margin=0.1,
    ),
    Claim("And more middling ones than hard ones", "middle, dpo, 0.5", "hard, dpo, 0.5", margin=0.1),
    Claim("Gamma 0.5 lies between", "accuracy, gamma 0.5", "accuracy, dpo, 0.5"),
    Claim("It pays for that with a larger distance from the reference", "kl, gamma 0", "kl, dpo, 0.5"),
)


def stopped(world: bandits.Bandit, pairs: bandits.Duels, held_out: bandits.Duels, **settings: float) -> Tensor:
    """Each seed's policy at its own lowest validation loss."""
    best, kept = torch.full((SEEDS,), torch.inf, dtype=torch.float64), world.ref.clone()

    def watch(update: int, logp: Tensor) -> None:
        loss = bandits.by_seed(world, held_out, dpo_gamma(bandits.batch(world, held_out, logp), **settings)[0])
        better = loss < best
        best[better], kept[better] = loss[better], logp[better]

    bandits.fit(world, bandits.by_part(world, pairs, "dpo_gamma", **settings), watch=watch)
    return kept


def measures(world: bandits.Bandit, policy: Tensor, beta: float) -> dict[str, list[float]]:
    """The metric on all pairs of arms with their true probabilities, told the better arm first, by seed."""
    flat = torch.zeros_like(world.ref).log_softmax(-1)
    every = bandits.expected(world, behaviour=flat)
    turned = every.prob < 0.5
    chosen, rejected = (
        torch.where(turned, every.rejected, every.chosen),
        torch.where(turned, every.chosen, every.rejected),
    )
    batch = bandits.batch(world, replace(every, chosen=chosen, rejected=rejected), policy)
    told: dict[str, list[float]] = {}
    for index in range(SEEDS):
        ours = every.row // world.ref.shape[1] == index
        sides = {"chosen": batch.chosen, "rejected": batch.rejected}
        columns = {f"{side}_logp": steps.logp[ours, 0].tolist() for side, steps in sides.items()}
        columns |= {f"{side}_ref": steps.ref[ours, 0].tolist() for side, steps in sides.items()}
        columns |= {f"{side}_steps": [1] * int(ours.sum()) for side in sides}
        metric = RankingAccuracy(beta=beta)
        metric.update(**columns, pair_prob=torch.maximum(every.prob, 1 - every.prob)[ours].tolist())
        for name, value in metric.compute().items():
            told.setdefault(name, []).append(value)
    return told


@cache
def figures() -> list[dict[str, float]]:
    """Log-linear policies, 3,000 pairs of any arms, a reference that knows nothing of the reward."""
    world = bandits.make(range(SEEDS), prompts=64, arms=8, spread=2.0)
    flat = torch.zeros_like(world.ref).log_softmax(-1)
    pairs = bandits.duels(world, 3000, behaviour=flat)
    held_out = bandits.merged(bandits.duels(world, 1000, behaviour=flat, salt=2), arms=8)
    told: dict[str, Tensor | list[float]] = {}
    for name, settings in SETTINGS.items():
        policy = stopped(world, pairs, held_out, **settings)
        found = measures(world, policy, settings["beta"])
        told |= {f"{short}, {name}": found[long] for short, long in NAMES.items()}
        told |= {f"kl, {name}": bandits.kl(policy, world.ref), f"reward, {name}": bandits.reward(world, policy)}
    return bandits.told(told)


@pytest.fixture(scope="module")
def measured():
    return measure("ranking-accuracy", "dpo_gamma", lambda seed: figures()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, measured) -> None:
    assert claim.shows(measured) == (not claim.tried)
