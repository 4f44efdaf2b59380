"""RSO: what statistical rejection keeps of its draws, and what a policy learns of pairs that were made that way."""

import random
from functools import cache

import pytest
import torch
from torch import Tensor

from stages.generate.samplers.rejection import accepted
from tests.claims import bandits, draws
from tests.claims.claim import Claim, measure

DRAWS, KEPT, SEEDS, GAMMA, BETA = 64, 8, 8, 0.05, 0.5

CLAIMS = (
    Claim("Accepted answers teach a policy more true reward than plain samples do", "rso", "sft", 0.2),
    Claim("So it does with the hinge", "rso, hinge", "sft, hinge", 0.2),
    Claim("The eight best of the draws serve about as well", "rso", "best", within=0.35),
    Claim("What is accepted scores above plain samples", "kept at 0.5", "plain", 0.5),
    Claim("The first accepted scores above the rest", "first kept at 0.5", "kept at 0.5"),
    Claim("The eight together score below the tilted policy that they stand for", "tilted at 0.5", "kept at 0.5", 0.3),
    Claim("A large beta keeps plain samples, nearly", "kept at 5", "plain", within=0.3),
    Claim("A small beta keeps the best of the draws", "kept at 0.05", "eight best", within=0.02),
    Claim(
        "Where the reward model errs more the eight best lose to what is accepted",
        "rso, noisy",
        "best, noisy",
        tried="errors four times as large as the true reward: who is best by the model is still the better guess",
    ),
)


def kept(scores: Tensor, arms: Tensor, beta: float, seed: int) -> Tensor:
    """Of the arms `[n,DRAWS]` of some prompts with their scores those that are accepted: `[n,KEPT]`."""
    rng, found = random.Random(seed), []
    for values, own in zip(scores.tolist(), arms.tolist()):
        chosen = accepted(values, list(map(str, own)), KEPT, beta, rng)
        found.append([own[i] for i in chosen])
    return torch.tensor(found)


def sampler(seed: int) -> dict[str, float]:
    """Mean scores of what is kept of 64 draws out of 2,000 answers, over 300 prompts."""
    noise = torch.Generator().manual_seed(seed)
    reward, logits = torch.randn(2, 300, 2000, generator=noise, dtype=torch.float64)
    ref = (0.5 * logits).log_softmax(-1)
    arms = torch.multinomial(ref.exp(), DRAWS, replacement=True, generator=noise)
    scores = reward.gather(-1, arms)
    told = {"eight best": float(scores.topk(KEPT).values.mean()), "plain": float(scores[:, :KEPT].mean())}
    for beta in (0.05, 0.5, 5.0):
        values = reward.gather(-1, kept(scores, arms, beta, seed))
        told |= {f"kept at {beta:g}": float(values.mean()), f"first kept at {beta:g}": float(values[:, 0].mean())}
        told[f"tilted at {beta:g}"] = float(((ref + reward / beta).softmax(-1) * reward).sum(-1).mean())
    return told


@cache
def learned() -> list[dict[str, float]]:
    """True reward of policies that learn from four pairs a prompt, ordered by a reward model that errs."""
    world = bandits.make(range(SEEDS), prompts=20, arms=80, scale=1.0)
    noise = torch.Generator().manual_seed(0)
    error = torch.randn(world.reward.shape, generator=noise, dtype=torch.float64)
    arms = draws.draw(world.ref, DRAWS, noise).flatten(0, 1)
    figures = {"reference": bandits.reward(world, world.ref)}
    for name, size in {"": 0.5, ", noisy": 4.0}.items():
        model = (world.reward + size * error).flatten(0, 1)
        scores = model.gather(-1, arms)
        ways = {"sft": arms[:, :KEPT], "rso": kept(scores, arms, BETA, 0), "best": kept(scores, arms, 0.0, 0)}
        for way, chosen in ways.items():
            figures[way + name] = bandits.reward(world, fitted(world, model, chosen, "dpo", beta=GAMMA))
            if not name:
                figures[f"{way}, hinge"] = bandits.reward(world, fitted(world, model, chosen, "rso", gamma=GAMMA))
    return bandits.told(figures)


def fitted(world: bandits.Bandit, model: Tensor, arms: Tensor, objective: str, **settings: float) -> Tensor:
    """The policy that an objective makes of neighbouring arms `[s*g,KEPT]`, the one that the model likes first."""
    shuffle = torch.rand(arms.shape, generator=torch.Generator().manual_seed(1)).argsort(-1)
    two = arms.gather(-1, shuffle).view(len(arms), -1, 2)
    ahead = model[:, None].expand(-1, two.shape[1], -1).gather(-1, two).argsort(-1, descending=True)
    chosen, rejected = two.gather(-1, ahead).unbind(-1)
    row = torch.arange(len(arms))[:, None].expand_as(chosen)
    differ = chosen != rejected
    weight = torch.full((int(differ.sum()),), 1 / (len(arms) / SEEDS * KEPT / 2), dtype=torch.float64)
    pairs = bandits.Duels(row[differ], chosen[differ], rejected[differ], weight)
    return bandits.fit(world, bandits.by_part(world, pairs, objective, **settings), tabular=True)


def once(seed: int) -> dict[str, float]:
    return {**learned()[seed], **sampler(seed)}


@pytest.fixture(scope="module")
def figures():
    return measure("rso", "rso", once, CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
