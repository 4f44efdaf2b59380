"""DPA on bandits with two rewards: one policy that is told a direction, beside one that learns a fixed mix of them."""

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.batches import Singles, Steps
from stages.evaluate.pareto import hypervolume
from stages.optimize.objectives.nll import nll
from tests.claims.claim import Claim, measure

PROMPTS, ARMS, DIMS, DRAWS, ROUNDS, UPDATES, SEEDS = 48, 32, 6, 8, 4, 150, 5
ANGLES = (-45.0, -22.5, 0.0, 22.5, 45.0)

CLAIMS = (
    Claim(
        "Told to give one reward up for the other, it gains far more v . r than the mix", "told, -45", "mix, -45", 1.0
    ),
    Claim("So it does where one reward alone is asked for", "told, 0", "mix, 0", 0.3),
    Claim("Where the mix itself is asked for the two are equal", "told, 45", "mix, 45", within=0.1),
    Claim("A round pushes the front out", "volume, round 1", "volume, round 0", 1.0),
    Claim("and a second one does", "volume, round 2", "volume, round 1", 1.0),
    Claim("A fourth hardly does", "volume, round 4", "volume, round 3", within=1.0),
    Claim("The second reward rises with the angle all the way", "smallest rise of the second reward", 0.0),
    Claim("The first reward is highest where it alone is asked for", "first reward at 0", "first reward elsewhere"),
    Claim("Without a choice of answers nothing is gained", "told, 0, one draw", 0.0, within=0.2),
)


@cache
def world() -> tuple[Tensor, Tensor]:
    """Features `[s,g,a,d]` and two rewards `[s,g,a,2]`, linear in them with unit weights whose product is 0.2."""
    arms, gains = [], []
    for seed in range(SEEDS):
        noise = torch.Generator().manual_seed(seed)
        first, other = F.normalize(torch.randn(2, DIMS, generator=noise, dtype=torch.float64), dim=-1)
        second = 0.2 * first + math.sqrt(1 - 0.2**2) * F.normalize(other - first * (first @ other), dim=0)
        arms.append(torch.randn(PROMPTS, ARMS, DIMS, generator=noise, dtype=torch.float64))
        gains.append(torch.stack([arms[-1] @ first, arms[-1] @ second], -1))
    return torch.stack(arms), torch.stack(gains)


def directions() -> Tensor:
    """Unit vectors `[m,2]`."""
    radians = torch.tensor(ANGLES, dtype=torch.float64) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], -1)


def policy(weights: Tensor, told: Tensor) -> Tensor:
    """Log-probs `[s,m,g,a]` of weights `[s,d,2]` at directions `[m,2]`: logits are features @ (weights @ v)."""
    features, _ = world()
    return torch.einsum("sgad,sde,me->smga", features, weights, told).log_softmax(-1)


def imitate(weights: Tensor, told: Tensor, best: Tensor) -> Tensor:
    """The weights after some steps of Adam on the likelihood of arms `[s,m,g,k]`; each seed's mean weighs alike."""
    weights = weights.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.05)
    for _ in range(UPDATES):
        logp = policy(weights, told).gather(-1, best).reshape(-1, 1)
        optimizer.zero_grad()
        nll(Singles(Steps(logp, torch.ones_like(logp, dtype=torch.bool))))[0].mean().backward()
        optimizer.step()
    return weights.detach()


def rounds(told: Tensor, aims: Tensor, *, n: int) -> list[Tensor]:
    """Weights before the first round and after each: sample n answers, keep the best by the aim, imitate it.

    Args:
        told: directions `[m,2]` that the policy hears.
        aims: directions `[m,2]` that its answers are chosen by.
        n: draws that one is chosen of; there are eight choices of each prompt and direction.
    """
    features, gains = world()
    weights = [torch.zeros(SEEDS, DIMS, 2, dtype=torch.float64)]
    worth = torch.einsum("sgae,me->smga", gains, aims)
    noise = torch.Generator().manual_seed(0)
    for _ in range(ROUNDS):
        p = policy(weights[-1], told).exp()
        drawn = torch.multinomial(p.flatten(0, 2), DRAWS * n, replacement=True, generator=noise)
        drawn = drawn.view(*p.shape[:3], DRAWS, n)
        value = worth.gather(-1, drawn.flatten(-2)).view(drawn.shape)
        best = drawn.gather(-1, value.argmax(-1, keepdim=True)).squeeze(-1)
        weights.append(imitate(weights[-1], told, best))
    return weights


def gained(weights: Tensor, told: Tensor) -> Tensor:
    """Expected rewards `[s,m,2]`."""
    return torch.einsum("smga,sgae->sme", policy(weights, told).exp(), world()[1]) / PROMPTS


@cache
def measured() -> list[dict[str, float]]:
    v = directions()
    diagonal = v[-1:].expand_as(v)
    conditional, mix = rounds(v, v, n=8), rounds(diagonal, diagonal, n=8)
    figures = {}
    for name, gains in {
        "told": gained(conditional[-1], v),
        "mix": gained(mix[-1], diagonal),
        "one draw": gained(rounds(v, v, n=1)[-1], v),
    }.items():
        along = (gains * v).sum(-1)
        key = "told, {:g}, one draw" if name == "one draw" else name + ", {:g}"
        figures |= {key.format(angle): along[:, i] for i, angle in enumerate(ANGLES)}
    for number, weights in enumerate(conditional):
        volumes = [hypervolume(rows, [-2.5, -2.5]) for rows in gained(weights, v).tolist()]
        figures[f"volume, round {number}"] = torch.tensor(volumes)
    first, second = gained(conditional[-1], v).unbind(-1)
    figures["smallest rise of the second reward"] = second.diff(dim=-1).amin(-1)
    figures["first reward at 0"], figures["first reward elsewhere"] = first[:, 2], first[:, [0, 1, 3, 4]].amax(-1)
    return [dict(zip(figures, map(float, each))) for each in zip(*figures.values())]


@pytest.fixture(scope="module")
def figures():
    return measure("dpa", "nll", lambda seed: measured()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
