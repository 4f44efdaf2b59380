"""SRPO on tables: two who draw pairs of different arms teach it the same policy, with cycles too, and it revises."""

from functools import cache

import pytest
import torch
from torch import Tensor

from tests.claims.claim import Claim, measure
from tests.objectives import revisable
from tests.objectives.revisable import Game

SEEDS, BETA, UPDATES = 6, 0.3, 3000
UTILITY = torch.tensor([1.5, 0.8, 0.0, -0.6, -1.2], dtype=torch.float64)
SKEWED = torch.tensor([0.02, 0.05, 0.13, 0.3, 0.5], dtype=torch.float64)
CYCLES = {"bradley-terry": 0.0, "cycle": 0.25}
METHODS = {"srpo": {"beta": BETA}, "ipo": {"tau": BETA, "length_normalize": False}, "dpo": {"beta": BETA}}
CLAIMS = (
    Claim("SRPO learns the same generator whoever drew the pairs", "srpo, bradley-terry", 0.0, within=0.001),
    Claim("So it does where no reward explains the preferences", "srpo, cycle", 0.0, within=0.001),
    Claim("IPO's policy depends on who drew the pairs", "ipo, bradley-terry", "srpo, bradley-terry", margin=0.02),
    Claim("With a cycle IPO's depends on it more than SRPO's", "ipo, cycle", "srpo, cycle", margin=0.03),
    Claim("DPO's does not depend on it under Bradley-Terry", "dpo, bradley-terry", 0.0, within=0.01),
    Claim("With a cycle it does", "dpo, cycle", "srpo, cycle", margin=0.03),
    Claim("The first revision of the generator's answer beats it", "revision 1, bradley-terry", 0.5, margin=0.002),
    Claim("It does where preferences run in a cycle", "revision 1, cycle", 0.5, margin=0.05),
    Claim("The first revision of the reference's answer beats it by far", "reference revised, bradley-terry", 0.6),
    Claim(
        "Later revisions beat what they revise by less and less",
        "revision 1, bradley-terry",
        "revision 5, bradley-terry",
        tried="beta 0.3: the improver is soft and its first revisions mix in worse answers, from where each beats the "
        "one before at the same rate, a little above one half, for ever",
    ),
)


def problems() -> tuple[Tensor, Tensor]:
    """Preferences `[seed,cycle,a,a]` and who draws `[seed,2,a]`: evenly, or skewed in a random order."""
    prefers, drawn = [], []
    for seed in range(SEEDS):
        noise = torch.Generator().manual_seed(seed)
        utility = UTILITY + 0.2 * torch.randn(5, generator=noise, dtype=torch.float64) * bool(seed)
        order = torch.randperm(5, generator=noise) if seed else torch.arange(5)
        prefers.append(torch.stack([revisable.beats(utility, cycle) for cycle in CYCLES.values()]))
        drawn.append(torch.stack([torch.full_like(SKEWED, 0.2), SKEWED[order]]))
    return torch.stack(prefers), torch.stack(drawn)


def learned(game: Game, objective: str) -> tuple[Tensor, Tensor]:
    """Log-probs of generator and improver after Adam from the reference, of every problem by itself."""
    n, a, _ = game.prefers.shape
    free = torch.zeros(n, a + 1, a, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    for _ in range(UPDATES):
        table = free.log_softmax(-1)
        optimizer.zero_grad()
        revisable.loss(game, objective, table[:, 0], table[:, 1:], **METHODS[objective]).sum().backward()
        optimizer.step()
        schedule.step()
    table = free.detach().log_softmax(-1)
    return table[:, 0], table[:, 1:]


def revised(prefers: Tensor, generator: Tensor, improver: Tensor, revisions: int) -> list[Tensor]:
    """P(a revision beats what it revises), of the first and those after it: `[n]` each."""
    now, step, wins = generator.exp(), improver.exp(), []
    for _ in range(revisions):
        wins.append(torch.einsum("ni,nij,nji->n", now, step, prefers))
        now = torch.einsum("ni,nij->nj", now, step)
    return wins


@cache
def measured() -> list[dict[str, float]]:
    """Figures of all seeds at once: total variation between the policies of the two who drew, and the revisions'."""
    prefers, drawn = problems()
    flat = prefers[:, :, None].expand(-1, -1, 2, -1, -1).flatten(0, 2)
    game = revisable.game(flat, drawn[:, None].expand(-1, len(CYCLES), -1, -1).flatten(0, 2))
    figures: list[dict[str, float]] = [{} for _ in range(SEEDS)]

    def tell(name: str, values: Tensor) -> None:
        for row, by_cycle in zip(figures, values.tolist(), strict=True):
            row.update({f"{name}, {cycle}": value for cycle, value in zip(CYCLES, by_cycle, strict=True)})

    for objective in METHODS:
        generator, improver = learned(game, objective)
        one, two = generator.exp().view(SEEDS, len(CYCLES), 2, -1).unbind(2)
        tell(objective, (one - two).abs().sum(-1) / 2)
        if objective == "srpo":
            even = torch.full_like(generator, 0.2).log()
            tell("reference revised", revised(flat, even, improver, 1)[0].view(SEEDS, len(CYCLES), 2)[..., 0])
            for i, won in enumerate(revised(flat, generator, improver, 5)):
                tell(f"revision {i + 1}", won.view(SEEDS, len(CYCLES), 2)[..., 0])
    return figures


@pytest.fixture(scope="module")
def figures():
    return measure("srpo", "srpo", lambda seed: measured()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
