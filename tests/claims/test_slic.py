"""SLiC-HF by means and by sums beside fine-tuning on the winners, from a model that knows texts and no task."""

import pytest
import torch

from stages import reduce
from tests.claims import toys
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("SLiC by means writes better texts than fine-tuning on the winners", "quality, slic", "quality, sft", 0.03),
    Claim(
        "So it does beside fine-tuning for twice as many steps, with as many texts priced",
        "quality, slic",
        "quality, sft, twice the steps",
        margin=0.03,
    ),
    Claim("It lowers the log-prob of a token of unseen losers by more", "loser, sft", "loser, slic", margin=0.05),
    Claim("The share of training pairs short of the margin falls", "short, base", "short, slic", margin=0.1),
    Claim("By sums, at the same margin and weight, it gains less", "quality, slic", "quality, slic by sums", 0.05),
    Claim("By sums it is not even as good as fine-tuning", "quality, sft", "quality, slic by sums"),
)


def once(seed: int) -> dict[str, float]:
    pairs, unseen = (toys.written(600, (0.6, 0.25), start + seed) for start in (300, 9100))

    def told(model: toys.Model) -> dict[str, float]:
        winner, loser = (toys.likelihood(model, unseen.texts[:, k]) for k in range(2))
        with torch.no_grad():
            means = reduce.average(toys.log_probs(model, pairs.texts), pairs.texts.mask)
        found = toys.look(model, toys.pretrained(seed, longest=10), longest=10)
        short = float((means[:, 0] - means[:, 1] < 1).double().mean())
        return {**found, "winner": winner, "loser": loser, "short": short}

    def learned(**settings) -> dict[str, float]:
        fresh, shared = toys.pretrained(seed, longest=10), {"delta": 1.0, "lambda_reg": 1.0, "updates": 160}
        return told(toys.learn(fresh, "slic", pairs, seed=seed, **shared, **settings))

    def tuned(updates: int) -> dict[str, float]:
        fresh = toys.pretrained(seed, longest=10)
        return told(toys.imitate(fresh, pairs.texts[:, 0], seed=seed, updates=updates))

    named = {
        "base": told(toys.pretrained(seed, longest=10)),
        "sft": tuned(160),
        "sft, twice the steps": tuned(320),
        "slic": learned(length_normalize=True),
        "slic by sums": learned(),
    }
    return {f"{figure}, {name}": value for name, one in named.items() for figure, value in one.items()}


@pytest.fixture(scope="module")
def figures():
    return measure("slic", "slic", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
