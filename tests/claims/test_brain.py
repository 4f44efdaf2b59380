"""BRAIn on bandits: its baseline takes the noise out of the gradient, all of it at the optimum."""

from functools import cache

import pytest
import torch
from torch import Tensor

from stages.batches import Groups
from stages.optimize.objectives.brain import brain
from stages.reduce import total
from tests.claims import bandits, draws
from tests.claims.claim import Claim, measure

BETA, K, SEEDS, ESTIMATES = 1.0, 8, 5, 3000

CLAIMS = (
    Claim("It comes nearer to the posterior than DPG, which has no baseline", "dpg", "brain", 0.02),
    Claim("It comes nearer than GDC++, whose baseline is not normalised", "gdc++", "brain"),
    Claim("At the posterior its gradient has no variance at all", "variance at optimum, brain", 0.0, within=1e-20),
    Claim("There GDC++'s has", "variance at optimum, gdc++", "variance at optimum, brain", 1e-2),
    Claim("There DPG's has", "variance at optimum, dpg", "variance at optimum, brain", 1e-2),
    Claim("At the reference too it varies less than DPG's", "variance, dpg", "variance, brain"),
    Claim(
        "and less than GDC++'s where arms are drawn uniformly", "variance, gdc++, uniform", "variance, brain, uniform"
    ),
)


def weighted(batch: Groups, *, baseline: bool) -> Tensor:
    """DPG's loss of each group, the log-probs weighed by alpha; with GDC++'s baseline less the policy's own ratio."""
    steps = batch.steps
    logp, ref, old = (total(each, steps.mask) for each in (steps.logp, steps.ref, steps.old))
    alpha = (ref + batch.reward / BETA - old).softmax(-1)
    own = (logp - old).detach().exp() / logp.shape[-1]
    return -((alpha - own if baseline else alpha) * logp).sum(-1)


METHODS = {
    "brain": lambda batch: brain(batch, beta=BETA)[0],
    "dpg": lambda batch: weighted(batch, baseline=False),
    "gdc++": lambda batch: weighted(batch, baseline=True),
}


def learning(world: bandits.Bandit, name: str, behaviour: Tensor) -> bandits.Loss:
    """The mean loss of fresh groups at every update, the same for all methods."""
    noise = torch.Generator().manual_seed(0)

    def loss(logp: Tensor) -> Tensor:
        batch = draws.grouped(world, draws.draw(behaviour, K, noise), logp, behaviour)
        return METHODS[name](batch).sum() / world.reward.shape[1]

    return loss


def variance(name: str, seed: int, *, at_optimum: bool, uniform: bool) -> Tensor:
    """Of the gradient of one group's loss with respect to the 50 logits of one prompt, summed over them."""
    one = bandits.make([seed], prompts=1, arms=50, scale=1.0)
    world = bandits.Bandit(
        (seed,), *(x.expand(1, ESTIMATES, *x.shape[2:]) for x in (one.features, one.reward, one.ref))
    )
    behaviour = torch.zeros_like(world.ref).log_softmax(-1) if uniform else world.ref
    policy = bandits.optimum(world, BETA) if at_optimum else world.ref
    logits = policy.clone().requires_grad_()
    arms = draws.draw(behaviour, K, torch.Generator().manual_seed(seed))
    METHODS[name](draws.grouped(world, arms, logits.log_softmax(-1), behaviour)).sum().backward()
    return logits.grad[0].var(0).sum()


@cache
def measured() -> list[dict[str, float]]:
    world = bandits.make(range(SEEDS), prompts=8, arms=50, scale=1.0)
    best = bandits.optimum(world, BETA)
    figures = {"reference": bandits.kl(best, world.ref)}
    for name in METHODS:
        policy = bandits.fit(world, learning(world, name, world.ref), tabular=True, updates=500, lr=0.05)
        figures[name] = bandits.kl(best, policy)
        for at in (True, False):
            for uniform in (True, False):
                key = f"variance{' at optimum' * at}, {name}{', uniform' * uniform}"
                each = [variance(name, seed, at_optimum=at, uniform=uniform) for seed in range(SEEDS)]
                figures[key] = torch.stack(each)
    return bandits.told(figures)


@pytest.fixture(scope="module")
def figures():
    return measure("brain", "brain", lambda seed: measured()[seed], CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
