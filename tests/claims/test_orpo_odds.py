"""ORPO beside fine-tuning on the winners, from a model that knows texts and no task."""

import pytest

from tests.claims import toys
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("ORPO writes better texts than fine-tuning on the winners", "quality, orpo", "quality, sft", margin=0.03),
    Claim(
        "So it does beside fine-tuning for twice as many steps, with as many texts priced",
        "quality, orpo",
        "quality, sft, twice the steps",
        margin=0.03,
    ),
    Claim("It lowers the log-prob of a token of unseen losers by more", "loser, sft", "loser, orpo", margin=0.05),
    Claim("It sets unseen winners further above losers", "gap, orpo", "gap, sft", margin=0.05),
    Claim(
        "Fine-tuning does not lower the log-prob of losers",
        "loser, sft",
        "loser, base",
        margin=-0.02,
        tried="a base of even words, for which losers are as likely as any text: what winners gain they lose",
    ),
)


def once(seed: int) -> dict[str, float]:
    pairs, unseen = (toys.written(600, (0.6, 0.25), start + seed) for start in (300, 9100))

    def told(model: toys.Model) -> dict[str, float]:
        winner, loser = (toys.likelihood(model, unseen.texts[:, k]) for k in range(2))
        found = toys.look(model, toys.pretrained(seed, longest=10), longest=10)
        return {**found, "winner": winner, "loser": loser, "gap": winner - loser}

    def learned(lambda_or: float, updates: int = 160) -> dict[str, float]:
        fresh, settings = toys.pretrained(seed, longest=10), {"lambda_or": lambda_or, "updates": updates}
        return told(toys.learn(fresh, "orpo_odds", pairs, seed=seed, **settings))

    named = {
        "base": told(toys.pretrained(seed, longest=10)),
        "sft": learned(0.0),
        "sft, twice the steps": learned(0.0, updates=320),
        "orpo": learned(1.0),
        "orpo, lambda 0.1": learned(0.1),
    }
    return {f"{figure}, {name}": value for name, one in named.items() for figure, value in one.items()}


@pytest.fixture(scope="module")
def figures():
    return measure("orpo-odds", "orpo_odds", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
