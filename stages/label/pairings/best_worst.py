"""Best against worst: one pair a prompt, the widest gap there is."""

import random

from stages.pairs import make_pair, ordered
from stages.parts import part
from stages.records import Candidate, Pair, Prompt


@part(paper="arXiv 2401.10020")
def best_worst(prompt: Prompt, candidates: list[Candidate], rng: random.Random, *, temperature: float) -> list[Pair]:
    """The highest score over the lowest.

    Args:
        prompt: what was asked.
        candidates: scored answers; among equal scores the first stands for all.
        rng: not used.
        temperature: the panel's, which turns score differences into probabilities.

    Returns:
        One pair, or none where all usable scores or texts are equal. Blank answers make no pair.

    The widest gap is also where length and reward hacking show most: read the audit.

    Differences from the paper: none.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, finished=True, score=s)
    ...         for i, (t, s) in enumerate([("4", 0.9), ("5", 0.4), ("fish", 0.0)])]
    >>> [(pair.chosen.text, pair.rejected.text) for pair in best_worst(ask, said, random.Random(0), temperature=0.1)]
    [('4', 'fish')]

    Source: Yuan et al., Self-Rewarding Language Models, ICML 2024, arXiv 2401.10020.
    """
    widest = max(ordered(candidates), key=lambda two: (two[0].score or 0) - (two[1].score or 0), default=None)
    return [make_pair(prompt, *widest, candidates, temperature)] if widest else []
