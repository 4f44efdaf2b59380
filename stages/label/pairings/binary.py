"""Binary: each answer alone is good or bad, for objectives that need no pairs."""

import random
from typing import Annotated

from pydantic import Field

from stages.pairs import completion
from stages.parts import part
from stages.records import Candidate, Prompt, Single


@part(paper="arXiv 2402.01306")
def binary(
    prompt: Prompt,
    candidates: list[Candidate],
    rng: random.Random,
    *,
    temperature: float,
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5,
) -> list[Single]:
    """Desirable where score > threshold.

    Args:
        prompt: what was asked.
        candidates: scored answers.
        rng: not used.
        temperature: not used; every pairing is handed the panel's.
        threshold: on the panel's scale of [0, 1]; a score that only reaches it is undesirable.

    Returns:
        One single a candidate, named as the candidate. Blank answers, and answers said before, give none.

    Differences from the paper: it splits pairs or takes thumbs; here a score is cut at the threshold.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, finished=True, score=s)
    ...         for i, (t, s) in enumerate([("4", 0.9), ("5", 0.4)])]
    >>> [(single.completion.text, single.label) for single in binary(ask, said, random.Random(0), temperature=0.1)]
    [('4', True), ('5', False)]

    Source: Ethayarajh et al., KTO: Model Alignment as Prospect Theoretic Optimization, ICML 2024, arXiv 2402.01306.
    """
    first = {c.content: c for c in reversed(candidates) if c.score is not None and not c.blank}
    return [
        Single(id=c.id, messages=prompt.messages, completion=completion(c), label=(c.score or 0) > threshold)
        for c in candidates
        if first.get(c.content) is c
    ]
