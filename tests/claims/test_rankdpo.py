"""RankDPO on the digits: ranked groups against pairs out of the same images, and the noise that a group shares."""

import random
from collections.abc import Sequence

import pytest
import torch

from stages.batches import Item, Steps
from stages.policies.image import Policy, pricing, seeds
from stages.policies.image import noise as arithmetic
from stages.records import Candidate
from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("RankDPO is not behind DPO on random pairs of as many images", "rankdpo", "dpo, random pairs", margin=-0.02),
    Claim("Noise shared by a group gains more than noise of each member's own", "rankdpo", "rankdpo, own noise", 0.02),
    Claim(
        "Where the scores are noisy, ranks beat best against worst",
        "rankdpo, noisy scores",
        "dpo, best against worst, noisy scores",
        tried="scores with noise of deviation 0.05, a little more than their own spread of 0.04 within a prompt",
    ),
)


class Apart(Policy):
    """Prices the members of a group at one level with noise of each one's own, as the paper does."""

    def log_probs(self, items: Sequence[Item], **_) -> Steps:
        where = seeds.levels([item.draw for item in items], 1, self.shape)[0]
        noise = seeds.levels([item.id for item in items], 1, self.shape)[1][:, 0]
        x0 = self.codec.encode([item.completion.image for item in items])
        time, _, (signal, sigma) = self.schedule.draw(where.flatten())
        level = arithmetic.over(signal, x0), arithmetic.over(sigma, x0)
        known = self.denoiser.condition([pricing.caption(item) for item in items], 1.0)
        out = self.denoiser(arithmetic.corrupt(x0, noise, level), time, known, 1.0)
        logp = -0.5 * (out - noise).square().flatten(1).mean(1, keepdim=True)
        return Steps(logp=logp, mask=torch.ones_like(logp, dtype=torch.bool))


def blurred(scored: list[Candidate], seed: int) -> list[Candidate]:
    """Scores as a noisy reward would tell them: brightness off by 0.05."""
    rng = random.Random(seed)
    off = [rng.gauss(0, 0.05) for _ in scored]
    return [
        c.model_copy(update={"score": c.score + d / 2, "scores": {"brightness": c.scores["brightness"] + d}})
        for c, d in zip(scored, off)
    ]


def once(seed: int) -> dict[str, float]:
    base = digits.policy(seed)
    asked, scored = runs.drawn(seed)
    noisy = blurred(scored, seed)
    ranks, noisy_ranks = runs.paired("ranking", asked, scored, seed), runs.paired("ranking", asked, noisy, seed)
    pairs = runs.paired("random_pairs", asked, scored, seed)
    widest = runs.paired("best_worst", asked, noisy, seed)
    arms = {  # the same number of images a step; rankdpo's beta stands for the same pull as dpo's
        "rankdpo": (Policy, ranks, "rankdpo", 32),
        "rankdpo, own noise": (Apart, ranks, "rankdpo", 32),
        "dpo, random pairs": (Policy, pairs, "dpo", 64),
        "rankdpo, noisy scores": (Policy, noisy_ranks, "rankdpo", 32),
        "dpo, best against worst, noisy scores": (Policy, widest, "dpo", 64),
    }
    told = {"base": digits.look(base)["brightness"]}
    for name, (kind, labelled, objective, batch) in arms.items():
        policy, reference = digits.policy(seed, kind=kind), digits.policy(seed, kind=kind)
        runs.offline(policy, reference, labelled, objective, seed=seed, steps=300, batch=batch, beta=1000.0)
        after = digits.look(policy)
        told |= {name: after["brightness"], f"own, {name}": after["own"]}
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("rankdpo", "rankdpo", once, CLAIMS, seeds=3)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
