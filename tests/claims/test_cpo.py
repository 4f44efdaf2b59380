"""CPO beside fine-tuning on the winners, and DPO, on pairs that somebody else wrote; no policy knew the task before."""

import pytest

from tests.claims import toys
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("CPO writes better texts than fine-tuning on the winners", "quality, cpo", "quality, sft", margin=0.04),
    Claim(
        "So it does beside fine-tuning for twice as many steps, with as many texts priced",
        "quality, cpo",
        "quality, sft, twice the steps",
        margin=0.04,
    ),
    Claim(
        "It keeps the log-prob that a token of unseen winners has after fine-tuning",
        "winner, cpo",
        "winner, sft",
        within=0.05,
    ),
    Claim("DPO loses it", "winner, cpo", "winner, dpo 0.1", margin=0.5),
    Claim("So does CPO without the likelihood of the winner", "winner, cpo", "winner, cpo, alpha 0", margin=0.5),
    Claim("Its texts are better than DPO's at the best of three betas", "quality, cpo", "quality, dpo, best"),
)


def once(seed: int) -> dict[str, float]:
    pairs, unseen = (toys.written(600, (0.7, 0.1), start + seed) for start in (200, 9000))
    base = toys.pretrained(seed, longest=10)

    def told(model: toys.Model) -> dict[str, float]:
        found = toys.look(model, base, longest=10)
        return {**found, "winner": toys.likelihood(model, unseen.texts[:, 0])}

    def learned(objective: str, **settings) -> dict[str, float]:
        fresh = toys.pretrained(seed, longest=10)
        return told(toys.learn(fresh, objective, pairs, seed=seed, updates=240, **settings))

    def tuned(updates: int) -> dict[str, float]:
        fresh = toys.pretrained(seed, longest=10)
        return told(toys.imitate(fresh, pairs.texts[:, 0], seed=seed, updates=updates))

    dpo = {beta: learned("dpo", beta=beta) for beta in (0.02, 0.1, 0.5)}
    named = {
        "sft": tuned(240),
        "sft, twice the steps": tuned(480),
        "cpo": learned("cpo", beta=0.1, alpha=0.9),
        "cpo, alpha 0": learned("cpo", beta=0.1, alpha=0.0),
        **{f"dpo {beta}": one for beta, one in dpo.items()},
        "dpo, best": max(dpo.values(), key=lambda one: one["quality"]),
    }
    return {f"{figure}, {name}": value for name, one in named.items() for figure, value in one.items()}


@pytest.fixture(scope="module")
def figures():
    return measure("cpo", "cpo", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
