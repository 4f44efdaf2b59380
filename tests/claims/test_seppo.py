"""SePPO on the digits: what its anchor test does, and how far winners alone move the samples."""

import random

import pytest

from stages.pairs import completion, demonstrations
from stages.policies.image import Policy
from stages.records import Candidate, Pair, Prompt
from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

ROUNDS, UPDATES, BATCH = 10, 30, 64  # a checkpoint every 30 updates
BETA = 1000.0
TRIED = "300 updates, beta 1000, a checkpoint every 30, samples of 5 steps; the card found no such order either"

CLAIMS = (
    Claim("Where the reference explains the winners better the anchor test turns most pairs", "turned", 0.5),
    Claim("The test pulls the policy further towards such winners", "way back, anchor", "way back, no anchor", 0.05),
    Claim("Under the test such winners do not collapse the policy", "own, anchor", "own, base", margin=-0.1),
    Claim(
        "Without the test such winners lower the quality guard",
        "own, anchor",
        "own, no anchor",
        margin=0.05,
        tried="the base's own samples as winners for 30 and 150 updates, from a policy moved by DPO, and for 300 from "
        "the base itself",
    ),
    Claim("SePPO on the brightest of 4 is above the base", "seppo", "base"),
    Claim("SePPO is ahead of fine-tuning on the winners", "seppo", "sft", tried=TRIED),
    Claim("The anchor test gains over none", "seppo", "seppo, no anchor", tried=TRIED),
)


def pairs(asked: list[Prompt], good: list[Candidate], own: list[Candidate]) -> list[Pair]:
    """A good image of each prompt over a sample of the reference."""
    return [
        Pair(
            id=f"{p.id}/0-1",
            messages=p.messages,
            chosen=completion(g),
            rejected=completion(o),
        )
        for p, g, o in zip(asked, good, own, strict=True)
    ]


def rounds(seed: int, asked: list[Prompt], good: list[Candidate], *, anchor: str, latest: bool = False) -> Policy:
    """The method: each round against an earlier checkpoint and its samples."""
    policy, rng, kept = digits.policy(seed), random.Random(seed), []
    for number in range(ROUNDS):
        kept.append({name: weight.clone() for name, weight in policy.model.state_dict().items()})
        reference = digits.policy(seed)
        reference.model.load_state_dict(kept[-1] if latest else rng.choice(kept))
        own = reference.sample(asked, 1, seed=seed + 999 * (number + 1), steps=5)
        settings = {"seed": seed + number, "steps": UPDATES, "batch": BATCH, "beta": BETA, "anchor": anchor}
        runs.offline(policy, reference, pairs(asked, good, own), "seppo", **settings)
    return policy


def turned_back(seed: int, asked: list[Prompt], scored: list[Candidate]) -> dict[str, float]:
    """A policy that DPO has moved learns from winners that are the base's own samples, with and without the test."""
    base, moved = digits.policy(seed), digits.policy(seed)
    widest = runs.paired("best_worst", asked, scored, seed)
    runs.offline(moved, base, widest, "dpo", seed=seed, steps=150, batch=BATCH, beta=BETA)
    own = base.sample(asked, 2, seed=seed + 5, steps=5)
    goal, start = digits.look(base), digits.look(moved)["brightness"]
    told = {"base": goal["brightness"], "own, base": goal["own"], "moved": start}
    for name, anchor in {"anchor": "sign", "no anchor": "none"}.items():
        policy = digits.policy(seed)
        policy.model.load_state_dict(moved.model.state_dict())
        settings = {"seed": seed, "steps": UPDATES, "batch": BATCH, "beta": BETA, "anchor": anchor}
        end = runs.offline(policy, base, pairs(asked, own[::2], own[1::2]), "seppo", **settings)
        after = digits.look(policy)
        told[f"own, {name}"] = after["own"]
        told[f"way back, {name}"] = (start - after["brightness"]) / (start - goal["brightness"])
        if anchor == "sign":
            told["turned"] = (1 - end["anchor"]) / 2
    return told


def once(seed: int) -> dict[str, float]:
    base = digits.policy(seed)
    asked, scored = runs.drawn(seed)
    asked = asked[:960]  # 15 batches
    scored = scored[: 4 * len(asked)]
    best = {c.prompt: c for c in sorted(scored, key=lambda c: c.score or 0.0)}  # the last one stays
    good = [best[p.id] for p in asked]
    told = turned_back(seed, asked, scored)
    arms = {
        "seppo": rounds(seed, asked, good, anchor="sign"),
        "seppo, no anchor": rounds(seed, asked, good, anchor="none"),
        "seppo, latest": rounds(seed, asked, good, anchor="sign", latest=True),
        "sft": digits.policy(seed),
    }
    runs.offline(arms["sft"], base, demonstrations(asked, good), "nll", seed=seed, steps=300, batch=BATCH)
    for name, policy in arms.items():
        after = digits.look(policy)
        told |= {name: after["brightness"], f"own, {name}": after["own"]}
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("seppo", "seppo", once, CLAIMS, seeds=3)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
