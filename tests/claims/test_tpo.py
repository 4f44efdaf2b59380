"""TPO beside fine-tuning on gold, DPO and CPO, on triples that somebody else wrote; no policy knew the task before."""

from dataclasses import replace

import pytest
import torch

from tests.claims import toys
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("TPO writes better texts than fine-tuning on gold", "quality, tpo", "quality, sft", margin=0.03),
    Claim(
        "So it does beside fine-tuning for three times as many steps, with as many texts priced",
        "quality, tpo",
        "quality, sft, three times the steps",
        margin=0.03,
    ),
    Claim("Without gold it gains less", "quality, tpo", "quality, tpo, alpha 0", margin=0.03),
    Claim(
        "It keeps the log-prob that a token of unseen gold has after fine-tuning", "gold, tpo", "gold, sft", within=0.05
    ),
    Claim("DPO on gold and rejected loses it", "gold, tpo", "gold, dpo", margin=0.5),
    Claim(
        "DPO goes further from the base",
        "kl, dpo",
        "kl, tpo",
        tried="nats a text, at beta 0.1: its texts become so short that in some seeds they have fewer",
    ),
    Claim("TPO-L beats fine-tuning too", "quality, tpo-l", "quality, sft", margin=0.03),
    Claim(
        "A second best answer as chosen is better than gold in its place",
        "quality, tpo",
        "quality, cpo",
        tried="CPO on gold and rejected, one text less to price: quality grows with the gap, which is wider there",
    ),
)


def once(seed: int) -> dict[str, float]:
    triples, unseen = (toys.written(600, (0.7, 0.5, 0.1), start + seed) for start in (200, 9000))
    triples = replace(triples, reward=torch.tensor([[1.0, 0.5, 0.0]]).expand(600, 3))
    pairs = toys.Data(triples.texts[:, [0, 2]])
    base = toys.pretrained(seed, longest=10)

    def told(model: toys.Model) -> dict[str, float]:
        return {**toys.look(model, base, longest=10), "gold": toys.likelihood(model, unseen.texts[:, 0])}

    def learned(objective: str, data: toys.Data, **settings) -> dict[str, float]:
        fresh = toys.pretrained(seed, longest=10)
        return told(toys.learn(fresh, objective, data, seed=seed, updates=240, **settings))

    def tuned(updates: int) -> dict[str, float]:
        fresh = toys.pretrained(seed, longest=10)
        return told(toys.imitate(fresh, triples.texts[:, 0], seed=seed, updates=updates))

    named = {
        "sft": tuned(240),
        "sft, three times the steps": tuned(720),
        "tpo": learned("tpo", triples, beta=0.1, alpha=0.9),
        "tpo, alpha 0": learned("tpo", triples, beta=0.1, alpha=0.0),
        "tpo-l": learned("tpo", triples, beta=2.0, alpha=0.9, length_normalize=True, gamma=0.5),
        "dpo": learned("dpo", pairs, beta=0.1),
        "cpo": learned("cpo", pairs, beta=0.1, alpha=0.9),
    }
    return {f"{figure}, {name}": value for name, one in named.items() for figure, value in one.items()}


@pytest.fixture(scope="module")
def figures():
    return measure("tpo", "tpo", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
