"""All pairs: every two candidates whose scores differ, K * (K - 1) / 2 at most."""

import random

from stages.pairs import make_pair, ordered
from stages.parts import part
from stages.records import Candidate, Pair, Prompt


@part(paper="arXiv 2203.02155")
def all_pairs(prompt: Prompt, candidates: list[Candidate], rng: random.Random, *, temperature: float) -> list[Pair]:
    """Every better answer over every worse one.

    Args:
        prompt: what was asked.
        candidates: scored answers.
        rng: not used.
        temperature: the panel's, which turns score differences into probabilities.

    Returns:
        Pairs in the candidates' order, winners first. Ties, equal texts and blank answers make none.

    Differences from the paper: a ranking becomes single pairs, so a prompt with more candidates weighs more; the
    paper averages over the pairs of a prompt.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, finished=True, score=s)
    ...         for i, (t, s) in enumerate([("4", 0.9), ("5", 0.4), ("fish", 0.0)])]
    >>> [(pair.chosen.text, pair.rejected.text) for pair in all_pairs(ask, said, random.Random(0), temperature=0.1)]
    [('4', '5'), ('4', 'fish'), ('5', 'fish')]

    Source: Ouyang et al., Training language models to follow instructions with human feedback, NeurIPS 2022,
    arXiv 2203.02155, section 3.5.
    """
    return [make_pair(prompt, *two, candidates, temperature) for two in ordered(candidates)]
