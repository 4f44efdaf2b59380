"""Curri-DPO on a tiny language model: four samples a prompt, pairs from easy to hard, a reference that moves.

All ways take 180 steps at beta 0.3 from the same start: in three phases of 60, or in one. The raters see the true
quality with some noise.
"""

import copy
import random
from collections.abc import Sequence

import pytest
import torch

from stages.label.pairings.best_against_rest import best_against_rest
from stages.optimize.curricula.easy_to_hard import easy_to_hard
from stages.records import Candidate, Prompt
from tests.claims import toys
from tests.claims.claim import Claim, measure

PROMPTS, ANSWERS, LONGEST, STEPS, NOISE = 1000, 4, 10, 180, 0.1
CLAIMS = (
    Claim("From easy to hard with a moving reference DPO gets further than on all pairs shuffled", "curriculum", "all"),
    Claim("The reference that moves is part of it", "curriculum", "curriculum, fixed reference"),
    Claim("So is the order: from hard to easy gains less", "curriculum", "hard to easy"),
    Claim("So are the harder pairs: three phases of the easiest gain less", "curriculum", "easiest three times"),
    Claim("All pairs shuffled get further than one pair a prompt, best against worst", "all", "best against worst"),
    Claim("It leaves the first policy further behind, in nats a text", "kl, curriculum", "kl, all", margin=0.5),
    Claim(
        "With one reference throughout the order alone gains something",
        "curriculum, fixed reference",
        "all",
        tried="180 steps in six seeds: ahead by 0.01 on average, behind in one",
    ),
    Claim(
        "Pairs in any order gain less from a reference that moves as often",
        "curriculum",
        "all, three times a moving reference",
        tried="180 steps in six seeds: never behind by more than 0.001, ahead by 0.005 on average",
    ),
    Claim(
        "It gets further than all pairs shuffled at a third of beta, which drifts as far",
        "curriculum",
        "all, a third of beta",
        tried="beta 0.1: equal quality at equal KL; most of the gain is the weaker pull of a reference that moves",
    ),
)


def sampled(seed: int) -> tuple[toys.Model, toys.Data, list[list[int]]]:
    """A policy, pairs of its own samples, and the phases in which they are learned from."""
    base, asked = toys.tuned(seed, longest=LONGEST), toys.prompts(PROMPTS, seed)
    drawn = toys.pair(*(toys.sample(base, asked, 10 * seed + 100 + k, longest=LONGEST) for k in range(ANSWERS)))
    noise = torch.randn(PROMPTS, ANSWERS, generator=torch.Generator().manual_seed(seed))
    scores = (toys.quality(drawn) + NOISE * noise).tolist()
    pairs = []
    for p, (row, texts) in enumerate(zip(scores, drawn.tokens.tolist(), strict=True)):
        prompt = Prompt(id=str(p), messages=({"role": "user", "content": str(p)},))
        said = [
            Candidate(id=f"{p}/{k}", prompt=prompt.id, text=str(text), score=score)
            for k, (text, score) in enumerate(zip(texts, row, strict=True))
        ]
        pairs += best_against_rest(prompt, said, random.Random(0), temperature=0.1)
    named = [pair.id.split("/") for pair in pairs]
    rows, sides = [int(prompt) for prompt, _ in named], [[int(k) for k in both.split("-")] for _, both in named]
    texts = drawn[torch.tensor(rows)[:, None], torch.tensor(sides)]
    return base, toys.Data(texts), easy_to_hard(pairs)


def once(seed: int) -> dict[str, float]:
    base, data, phases = sampled(seed)
    turns = [data[torch.tensor(phase)] for phase in phases]
    told: dict[str, float] = {}

    def learned(name: str, turns: Sequence[toys.Data], *, moving: bool = False, beta: float = 0.3) -> None:
        model = copy.deepcopy(base)
        for n, turn in enumerate(turns):
            reference = None if moving else base  # none: as it is when the phase begins
            updates = STEPS // len(turns)
            toys.learn(model, "dpo", turn, seed=10 * seed + n, reference=reference, updates=updates, beta=beta)
        found = toys.look(model, base, longest=LONGEST)
        told[name], told[f"kl, {name}"] = found["quality"], found["kl"]

    learned("curriculum", turns, moving=True)
    learned("curriculum, fixed reference", turns)
    learned("hard to easy", turns[::-1], moving=True)
    learned("easiest three times", turns[:1] * 3, moving=True)
    learned("all", [data])
    learned("all, a third of beta", [data], beta=0.1)
    learned("all, three times a moving reference", [data] * 3, moving=True)
    learned("best against worst", turns[:1])
    return told | {"quality, first policy": toys.look(base, longest=LONGEST)["quality"]}


@pytest.fixture(scope="module")
def figures():
    return measure("curry-dpo", "dpo", once, CLAIMS, seeds=6)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
