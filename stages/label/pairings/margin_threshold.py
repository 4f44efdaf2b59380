"""Margin threshold: all pairs whose scores differ by enough for the order to be believed."""

import random
from typing import Annotated

from pydantic import Field

from stages.labelling import TIE
from stages.pairs import make_pair, ordered
from stages.parts import part
from stages.records import Candidate, Pair, Prompt


@part()
def margin_threshold(
    prompt: Prompt,
    candidates: list[Candidate],
    rng: random.Random,
    *,
    temperature: float,
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.1,
) -> list[Pair]:
    """Every better answer over every worse one, where margin >= threshold.

    All such pairs are taken, not only the widest: what is discarded is doubt, not data.

    Args:
        prompt: what was asked.
        candidates: scored answers.
        rng: not used.
        temperature: the panel's, which turns score differences into probabilities.
        threshold: least difference of scores, on the panel's scale of [0, 1]; 0 takes all pairs.

    Returns:
        Pairs in the candidates' order, winners first. Ties, equal texts and blank answers make none.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, finished=True, score=s)
    ...         for i, (t, s) in enumerate([("4", 0.9), ("four", 0.85), ("fish", 0.0)])]
    >>> sure = margin_threshold(ask, said, random.Random(0), temperature=0.1, threshold=0.5)
    >>> [(pair.chosen.text, pair.rejected.text) for pair in sure]
    [('4', 'fish'), ('four', 'fish')]
    """
    pairs = (make_pair(prompt, *two, candidates, temperature) for two in ordered(candidates))
    return [pair for pair in pairs if pair.margin >= threshold - TIE]
