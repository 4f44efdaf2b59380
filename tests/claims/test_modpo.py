"""MODPO on bandits with two rewards that pull apart: its front beside those of simpler ways to serve both."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages import parts
from stages.evaluate.pareto import hypervolume
from tests.claims import bandits
from tests.claims.claim import Claim, measure

BETA, PAIRS, SEEDS = 0.5, 5000, 5
WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the first reward

CLAIMS = (
    Claim(
        "At equal weights MODPO is nearer to the optimum than a sum of two DPO losses",
        "sum, 0.5",
        "modpo, 0.5",
        0.01,
    ),
    Claim("So it is at the weight where it is least ahead", "sum's lead over modpo, smallest", 0.0),
    Claim("It is far ahead of DPO on the first reward's pairs alone", "first alone, 0.5", "modpo, 0.5", 0.1),
    Claim(
        "Averaging the log-probs of two log-linear DPO policies is as good", "mixture, 0.5", "modpo, 0.5", within=0.01
    ),
    Claim("Its front encloses more than that of the weighted sum", "volume, modpo", "volume, sum"),
    Claim("Averaging log-probs encloses about as much", "volume, modpo", "volume, mixture", within=0.1),
)


@cache
def worlds() -> tuple[bandits.Bandit, bandits.Bandit]:
    """The same arms with two rewards of deviation 2, their directions at 115 degrees."""
    world = bandits.make(range(SEEDS))
    second = []
    for seed, features, reward in zip(world.seeds, world.features, world.reward):
        first = torch.linalg.lstsq(features.flatten(0, 1), reward.flatten()[:, None]).solution.squeeze(-1)
        noise = torch.Generator().manual_seed(500 + seed)
        other = torch.randn(len(first), generator=noise, dtype=torch.float64)
        away = F.normalize(other - F.normalize(first, dim=0) * (other @ F.normalize(first, dim=0)), dim=0)
        second.append(features @ (2 * F.normalize(away - 0.47 * F.normalize(first, dim=0), dim=0)))
    return world, replace(world, reward=torch.stack(second))


def modpo(world: bandits.Bandit, pairs: bandits.Duels, other: Tensor, w: float) -> bandits.Loss:
    """MODPO on the first reward's pairs, the margin from another reward of all arms `[s,g,a]`."""
    part, values = parts.find("objective", "modpo").function, other.flatten(0, 1)
    kept = bandits.merged(pairs, other.shape[-1])
    margin = (1 - w) * (values[kept.row, kept.chosen] - values[kept.row, kept.rejected])

    def loss(logp: Tensor) -> Tensor:
        batch = replace(bandits.batch(world, kept, logp), margin=margin)
        return (kept.weight * part(batch, beta=BETA, weight=w)[0]).sum()

    return loss


@cache
def measured() -> list[dict[str, float]]:
    first, second = worlds()
    pairs = [bandits.duels(world, PAIRS, salt=salt) for salt, world in enumerate((first, second), 1)]
    by_dpo = [bandits.by_part(world, own, "dpo", beta=BETA) for world, own in zip((first, second), pairs)]
    alone = [bandits.fit(first, loss) for loss in by_dpo]
    implicit = BETA * (alone[1] - first.ref)  # the second reward as its DPO policy tells it
    figures: dict[str, Tensor] = {}
    fronts: dict[str, list[Tensor]] = {}
    for w in WEIGHTS:
        policies = {
            "modpo": bandits.fit(first, modpo(first, pairs[0], implicit, w)),
            "sum": bandits.fit(first, lambda logp, w=w: w * by_dpo[0](logp) + (1 - w) * by_dpo[1](logp)),
            "mixture": (w * alone[0] + (1 - w) * alone[1]).log_softmax(-1),
            "first alone": alone[0],
        }
        both = replace(first, reward=w * first.reward + (1 - w) * second.reward)
        for name, policy in policies.items():
            figures[f"{name}, {w:g}"] = bandits.regret(both, policy, BETA)
            gains = torch.stack([bandits.reward(world, policy) for world in (first, second)], -1)
            fronts.setdefault(name, []).append(gains)
    leads = torch.stack([figures[f"sum, {w:g}"] - figures[f"modpo, {w:g}"] for w in WEIGHTS])
    figures["sum's lead over modpo, smallest"] = leads.amin(0)
    for name, gains in fronts.items():
        volumes = [hypervolume(rows.tolist(), [-2.0, -2.0]) for rows in torch.stack(gains, 1)]
        figures[f"volume, {name}"] = torch.tensor(volumes)
    return bandits.told(figures)


@pytest.fixture(scope="module")
def figures():
    return measure("modpo", "modpo", lambda seed: measured()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
