"""Best against rest: the best answer over each of the others, pairs of every difficulty with one winner."""

import random

from stages.pairs import make_pair, ordered
from stages.parts import part
from stages.records import Candidate, Pair, Prompt


@part(paper="arXiv 2403.07230", equation="section 3")
def best_against_rest(
    prompt: Prompt, candidates: list[Candidate], rng: random.Random, *, temperature: float
) -> list[Pair]:
    """The highest score over every lower one.

    Args:
        prompt: what was asked.
        candidates: scored answers; among equal scores the first is the best.
        rng: not used.
        temperature: the panel's, which turns score differences into probabilities.

    Returns:
        At most K - 1 pairs in the candidates' order, each with its gap of scores as its margin. Ties with the best,
        texts that equal it, and blank answers make none.

    Differences from the paper: none.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, finished=True, score=s)
    ...         for i, (t, s) in enumerate([("5", 0.4), ("4", 0.9), ("fish", 0.0)])]
    >>> made = best_against_rest(ask, said, random.Random(0), temperature=0.1)
    >>> [(pair.chosen.text, pair.rejected.text, pair.margin) for pair in made]
    [('4', '5', 0.5), ('4', 'fish', 0.9)]

    Source: Pattnaik et al., Enhancing Alignment using Curriculum Learning & Ranked Preferences, EMNLP Findings 2024,
    arXiv 2403.07230.
    """
    able = ordered(candidates)
    best = max((winner for winner, _ in able), key=lambda winner: winner.score or 0.0, default=None)
    return [make_pair(prompt, winner, loser, candidates, temperature) for winner, loser in able if winner is best]
