"""Scored: all candidates of a prompt as one group, each with the panel's score itself."""

import random

from stages.labelling import TIE
from stages.pairs import completion
from stages.parts import part
from stages.records import Candidate, Prompt, Ranking


@part()
def scored(prompt: Prompt, candidates: list[Candidate], rng: random.Random, *, temperature: float) -> list[Ranking]:
    """The group that objectives on scalar rewards take: `ranking` would hand them shares of votes.

    Args:
        prompt: what was asked.
        candidates: scored answers.
        rng: not used.
        temperature: not used; every pairing is handed the panel's.

    Returns:
        One ranking, best first, each completion's score its mixed score in [0, 1]; none where no two differ. Blank
        answers, and answers given before, are left out.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, score=s)
    ...         for i, (t, s) in enumerate([("5", 0.4), ("4", 0.9), ("4", 0.9)])]
    >>> (group,) = scored(ask, said, random.Random(0), temperature=0.1)
    >>> [(one.text, one.score) for one in group.completions]
    [('4', 0.9), ('5', 0.4)]
    """
    first = {c.content: c for c in reversed(candidates) if c.score is not None and not c.blank}
    able = sorted((c for c in candidates if first.get(c.content) is c), key=lambda c: -(c.score or 0.0))
    if len(able) < 2 or (able[0].score or 0.0) - (able[-1].score or 0.0) <= TIE:
        return []
    return [Ranking(id=prompt.id, messages=prompt.messages, completions=tuple(map(completion, able)))]
