"""Random pairs: two candidates drawn blindly, then put in order by score; on-policy pairs of every difficulty."""

import random
from typing import Annotated

from pydantic import Field

from stages.pairs import make_pair, ordered
from stages.parts import part
from stages.records import Candidate, Pair, Prompt


@part()
def random_pairs(
    prompt: Prompt,
    candidates: list[Candidate],
    rng: random.Random,
    *,
    temperature: float,
    count: Annotated[int, Field(ge=1)] = 1,
) -> list[Pair]:
    """`count` different pairs, drawn with equal chances among all pairs that are not tied.

    Args:
        prompt: what was asked.
        candidates: scored answers.
        rng: draws the pairs.
        temperature: the panel's, which turns score differences into probabilities.
        count: pairs a prompt; a prompt with fewer gives all it has.

    Returns:
        Pairs in the order drawn. Ties, equal texts and blank answers make none.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, finished=True, score=s)
    ...         for i, (t, s) in enumerate([("4", 0.9), ("5", 0.4), ("fish", 0.0)])]
    >>> [(pair.chosen.text, pair.rejected.text) for pair in random_pairs(ask, said, random.Random(0), temperature=0.1)]
    [('4', 'fish')]
    """
    able = ordered(candidates)
    return [make_pair(prompt, *two, candidates, temperature) for two in rng.sample(able, min(count, len(able)))]
