"""Triple: the best, the second best and the worst answer to a prompt: one to imitate and two to compare."""

import random

from stages.labelling import TIE
from stages.pairs import completion
from stages.parts import part
from stages.records import Candidate, Prompt, Ranking


@part(paper="arXiv 2405.16681", equation="section 4")
def triple(prompt: Prompt, candidates: list[Candidate], rng: random.Random, *, temperature: float) -> list[Ranking]:
    """One answer of the highest score, one of the second highest and one of the lowest.

    Args:
        prompt: what was asked.
        candidates: scored answers; best three or more.
        rng: draws among answers with the same score.
        temperature: not used; every pairing is handed the panel's.

    Returns:
        One ranking of three, best first, with their scores; none where there are fewer than three different scores.
        Blank answers, and answers given before, are left out.

    Differences from the paper: none; four answers without ties, as in its data, leave out the third.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, score=s)
    ...         for i, (t, s) in enumerate([("5", 0.4), ("4", 0.9), ("fish", 0.0), ("four", 0.8)])]
    >>> (best,) = triple(ask, said, random.Random(0), temperature=0.1)
    >>> [one.text for one in best.completions]
    ['4', 'four', 'fish']

    Source: Saeidi et al., Triple Preference Optimization: Achieving Better Alignment using a Single Step
    Optimization, 2024, arXiv 2405.16681.
    """
    first = {c.content: c for c in reversed(candidates) if c.score is not None and not c.blank}
    levels: list[list[Candidate]] = []  # answers by score, the highest first
    for one in sorted(first.values(), key=lambda c: (-(c.score or 0.0), c.id)):
        if levels and (levels[-1][0].score or 0.0) - (one.score or 0.0) <= TIE:
            levels[-1].append(one)
        else:
            levels.append([one])
    if len(levels) < 3:
        return []
    kept = tuple(completion(rng.choice(levels[place])) for place in (0, 1, -1))
    return [Ranking(id=prompt.id, messages=prompt.messages, completions=kept)]
