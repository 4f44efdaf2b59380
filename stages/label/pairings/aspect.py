"""Aspect: random pairs that one reward puts in order, with the other rewards' say in the margin."""

import math
import random
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from stages.labelling import TIE, unit
from stages.pairs import make_pair, ordered, spec
from stages.parts import Spec, part
from stages.records import Candidate, Pair, Prompt

WHERE = "params.yaml label.pairing"
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@part(paper="arXiv 2310.03708", equation="margins of MODPO", needs=("rewards",))
def aspect(
    prompt: Prompt,
    candidates: list[Candidate],
    rng: random.Random,
    *,
    temperature: float,
    rewards: Mapping[str, Spec],
    by: str | None = None,
    margins: dict[str, Weight] | None = None,
    count: Annotated[int, Field(ge=1)] = 1,
) -> list[Pair]:
    """Pairs ordered by the reward `by`; their margin is what all others make of the two answers.

        margin = sum over j of w_j * (o_j(chosen) - o_j(rejected))

    o_j is reward j in log-odds: log(r / (1 - r)) of the trained `reward_model`, whose score is a chance; any other
    reward, on the scale where 0 is its worst and 1 its best, over the panel's temperature, as pairs are judged by it.

    Args:
        prompt: what was asked.
        candidates: scored answers; rewards named here must be on the panel, with any weight.
        rng: draws the pairs.
        temperature: the panel's.
        rewards: what those on the panel declare, by key.
        by: the reward that orders; the mixed score where absent.
        margins: weight w_j of each other reward. MODPO's objective divides by the weight of `by`.
        count: pairs a prompt; a prompt with fewer gives all it has.

    Returns:
        Pairs in the order drawn; scores, `prob` and win rates are those of `by`. Ties in it, equal texts, blank answers
        and answers that lack one of the rewards make none.

    Differences from the paper: the order follows a reward instead of a data set of one aspect's annotations.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, score=0.5, scores={"relevance": r, "length": l})
    ...         for i, (t, r, l) in enumerate([("4, as I said", 0.9, 0.3), ("4", 0.7, 0.5)])]
    >>> settings = {"by": "relevance", "margins": {"length": 0.5}}
    >>> panel = {"relevance": Spec(range=(0, 1)), "length": Spec(range=(0, 1))}
    >>> (pair,) = aspect(ask, said, random.Random(0), temperature=0.1, rewards=panel, **settings)
    >>> pair.chosen.text, round(pair.margin, 3), round(pair.prob, 4)  # relevance sigmoid(2), length 0.5 * -2
    ('4, as I said', -1.0, 0.8808)

    Source: Zhou et al., Beyond One-Preference-Fits-All Alignment: Multi-Objective Direct Preference Optimization,
    Findings of ACL 2024, arXiv 2310.03708.
    """
    weights, able = margins or {}, [c for c in candidates if c.score is not None]
    told = {name: spec(rewards, name, WHERE) for name in (*weights, *([by] if by else []))}
    for name in told:
        able = [c for c in able if name in c.scores]
    if by:
        worth = [odds(told[by], c.scores[by], temperature) * temperature for c in able]
        able = [c.model_copy(update={"score": value}) for c, value in zip(able, worth, strict=True)]
    pairs = ordered(able)
    made = []
    for winner, loser in rng.sample(pairs, min(count, len(pairs))):
        gap = sum(
            w * (odds(told[name], winner.scores[name], temperature) - odds(told[name], loser.scores[name], temperature))
            for name, w in weights.items()
        )
        made.append(make_pair(prompt, winner, loser, able, temperature).model_copy(update={"margin": gap}))
    return made


def odds(declared: Spec, score: float, temperature: float) -> float:
    """A reward's score in log-odds of preferences over it.

    >>> chance = Spec(range=(0, 1), needs=("reward_model",))
    >>> round(odds(chance, 0.7311, 0.1), 3), round(odds(Spec(range=(0, 1)), 0.7, 0.1), 3)
    (1.0, 7.0)
    """
    if "reward_model" in declared.needs:
        chance = min(max(score, TIE), 1 - TIE)
        return math.log(chance / (1 - chance))
    return unit(declared, score) / temperature
