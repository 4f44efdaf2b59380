"""IPO on certain preferences: three answers in a strict order, and a fourth that nobody compared."""

from functools import cache

import pytest
import torch

from tests.claims import bandits
from tests.claims.claim import Claim, measure

SEEDS, STEPS = 5, 1500
CLAIMS = (
    Claim("DPO puts everything on the best answer, even at beta 1", "best, dpo, beta 1", 0.99),
    Claim("IPO at tau 0.5 does not", "best, dpo, beta 1", "best, ipo, tau 0.5", margin=0.3),
    Claim("A larger tau keeps it closer to the reference", "best, ipo, tau 0.5", "best, ipo, tau 1", margin=0.05),
    Claim("IPO no longer changes when training is doubled", "change when doubled, ipo", 0.0, within=1e-3),
    Claim(
        "DPO's margins go on growing", "margin gained when doubled, dpo", "margin gained when doubled, ipo", margin=0.3
    ),
    Claim(
        "An answer that was never compared is excluded by DPO and kept by IPO",
        "fourth, ipo",
        "fourth, dpo",
        margin=0.05,
    ),
)


def ordered(arms: int) -> tuple[bandits.Bandit, bandits.Duels]:
    """One prompt, a reference near uniform, all pairs of the first three arms with the lower number preferred."""
    world = bandits.make(range(SEEDS), prompts=1, arms=arms, dims=1, spread=0.2)
    first, second = torch.triu_indices(3, 3, 1)
    row = torch.arange(SEEDS).repeat_interleave(3)
    weight = torch.full((3 * SEEDS,), 1 / 3, dtype=torch.float64)
    return world, bandits.Duels(row, first.repeat(SEEDS), second.repeat(SEEDS), weight)


@cache
def figures() -> list[dict[str, float]]:
    told = {}
    for arms in (3, 4):
        world, pairs = ordered(arms)
        settings = {f"dpo, beta {beta:g}": ("dpo", {"beta": beta}) for beta in (0.1, 0.5, 1.0)}
        for tau in (0.1, 0.5, 1.0):
            settings[f"ipo, tau {tau:g}"] = ("ipo", {"tau": tau, "length_normalize": False})
        for name, (objective, given) in settings.items():
            loss = bandits.by_part(world, pairs, objective, **given)
            once, twice = (bandits.fit(world, loss, tabular=True, updates=n)[:, 0] for n in (STEPS, 2 * STEPS))
            if arms == 3:
                told[f"best, {name}"] = once[:, 0].exp()
                if name in ("dpo, beta 1", "ipo, tau 0.5"):
                    gained = (twice[:, 0] - twice[:, 2]) - (once[:, 0] - once[:, 2])
                    told[f"margin gained when doubled, {objective}"] = gained
                    told[f"change when doubled, {objective}"] = (twice.exp() - once.exp()).abs().amax(-1)
            elif name in ("dpo, beta 1", "ipo, tau 0.5"):
                told[f"fourth, {objective}"] = once[:, 3].exp()
    return bandits.told(told)


@pytest.fixture(scope="module")
def measured():
    return measure("ipo", "ipo", lambda seed: figures()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, measured) -> None:
    assert claim.shows(measured) == (not claim.tried)
