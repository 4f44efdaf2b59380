"""KTO on pairs of which one side was lost: it learns from what is left, DPO only from whole pairs."""

from functools import cache

import pytest
import torch

from tests.claims import bandits
from tests.claims.claim import Claim, measure

SEEDS, PAIRS, BETA = 6, 2000, 0.3
KEPT = (1.0, 0.5, 0.1)
CLAIMS = (
    Claim("Where one pair of ten is whole KTO is ahead of DPO", "kto, 0.1 whole", "dpo, 0.1 whole", margin=0.1),
    Claim("Where all pairs are whole DPO is ahead", "dpo, 1 whole", "kto, 1 whole", margin=0.1),
    Claim("DPO loses more as pairs break", "lost, dpo", "lost, kto", margin=0.3),
    Claim("Even then KTO is ahead of SFT on the chosen answers of all pairs", "kto, 0.1 whole", "sft", margin=0.3),
)


def broken(pairs: bandits.Duels, n: int, whole: float, seed: int) -> tuple[bandits.Duels, tuple[torch.Tensor, ...]]:
    """One seed's whole pairs, and arms, rows and labels of all that is left: of a broken pair a random side."""
    noise = torch.Generator().manual_seed(seed)
    kept, lost = torch.rand(n, generator=noise) < whole, torch.rand(n, generator=noise) < 0.5
    good, bad = kept | lost, kept | ~lost
    weight = torch.full((int(kept.sum()),), 1 / int(kept.sum()), dtype=torch.float64)
    intact = bandits.Duels(pairs.row[kept], pairs.chosen[kept], pairs.rejected[kept], weight)
    row = torch.cat([pairs.row[good], pairs.row[bad]])
    arm = torch.cat([pairs.chosen[good], pairs.rejected[bad]])
    label = torch.arange(len(row)) < good.sum()
    order = torch.randperm(len(row), generator=noise)  # so that its neighbour, the mismatch, is any other
    return intact, (arm[order], row[order], label[order])


@cache
def figures() -> list[dict[str, float]]:
    """A table of logits, 2,000 pairs of the reference's answers, 300 steps, all with the same beta."""
    return [of_seed(seed) for seed in range(SEEDS)]


def of_seed(seed: int) -> dict[str, float]:
    world = bandits.make([seed])
    pairs = bandits.duels(world, PAIRS)
    told = {"sft": float(bandits.reward(world, bandits.fit(world, bandits.sft(world, pairs), tabular=True)))}
    for whole in KEPT:
        intact, left = broken(pairs, PAIRS, whole, seed)
        losses = {
            "dpo": bandits.by_part(world, intact, "dpo", beta=BETA),
            "kto": bandits.by_singles(world, *left, "kto", beta=BETA),
        }
        for name, loss in losses.items():
            policy = bandits.fit(world, loss, tabular=True)
            told[f"{name}, {whole:g} whole"] = float(bandits.reward(world, policy))
    return told | {f"lost, {name}": told[f"{name}, 1 whole"] - told[f"{name}, 0.1 whole"] for name in ("dpo", "kto")}


@pytest.fixture(scope="module")
def measured():
    return measure("kto", "kto", lambda seed: figures()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, measured) -> None:
    assert claim.shows(measured) == (not claim.tried)
