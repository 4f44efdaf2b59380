"""Ranking: all candidates of a prompt in order, each with the share of comparisons that it wins."""

import random
from collections.abc import Mapping
from typing import Literal

from stages.labelling import TIE, unit
from stages.pairs import completion, spec
from stages.parts import Spec, part
from stages.records import Candidate, Prompt, Ranking

WHERE = "params.yaml label.pairing.voters"


@part(paper="arXiv 2410.18013", equation="algorithm 1", needs=("rewards",))
def ranking(
    prompt: Prompt,
    candidates: list[Candidate],
    rng: random.Random,
    *,
    temperature: float,
    rewards: Mapping[str, Spec],
    by: Literal["votes", "score"] = "votes",
    voters: list[str] | None = None,
) -> list[Ranking]:
    """Every reward votes on every two candidates; the score of a candidate is the share of votes that it wins.

        phi_i = sum over rewards l and j != i of [ R_l(x_i) > R_l(x_j) ] / (n * (K - 1))

    Args:
        prompt: what was asked.
        candidates: scored answers.
        rng: not used.
        temperature: not used; every pairing is handed the panel's.
        rewards: what those on the panel declare, by key.
        by: votes of the rewards, each in the direction it declares and whatever its weight; or the mixed score as the
            only voter, which the weights decide.
        voters: keys of the rewards that vote; all where absent. Name them where a reward is only recorded.

    Returns:
        One ranking, best first, each completion's score its phi in [0, 1]; none where no two differ. Without ties phi
        sums to K / 2. Blank answers, and answers given before, are left out.

    Differences from the paper: a reward that did not score all of the answers has no vote. Where none did, as in a
    panel of judges, the mixed score votes.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, score=s)
    ...         for i, (t, s) in enumerate([("5", 0.4), ("4", 0.9), ("fish", 0.0)])]
    >>> (ranked,) = ranking(ask, said, random.Random(0), temperature=0.1, rewards={})
    >>> [(one.text, one.score) for one in ranked.completions]
    [('4', 1.0), ('5', 0.5), ('fish', 0.0)]

    Source: Karthik et al., Scalable Ranked Preference Optimization for Text-to-Image Generation, ICCV 2025,
    arXiv 2410.18013.
    """
    first = {c.content: c for c in reversed(candidates) if c.score is not None and not c.blank}
    able = [c for c in candidates if first.get(c.content) is c]
    columns = [] if by == "score" else votes(able, voters, rewards)
    phi = shares(columns or [[c.score or 0.0 for c in able]])
    if len(set(phi)) < 2:
        return []
    order = sorted(range(len(able)), key=lambda i: -phi[i])
    ranked = tuple(completion(able[i]).model_copy(update={"score": phi[i]}) for i in order)
    return [Ranking(id=prompt.id, messages=prompt.messages, completions=ranked)]


def votes(able: list[Candidate], voters: list[str] | None, rewards: Mapping[str, Spec]) -> list[list[float]]:
    """What each reward that scored all candidates says of them, 0 its worst and 1 its best.

    Raises:
        UserError: a voter that is not on the panel.
    """
    named = voters if voters is not None else sorted({name for c in able for name in c.scores})
    specs = {name: spec(rewards, name, WHERE) for name in named}
    full = [name for name in named if all(name in c.scores for c in able)]
    return [[unit(specs[name], c.scores[name]) for c in able] for name in full]


def shares(columns: list[list[float]]) -> list[float]:
    """The share of comparisons that each candidate wins, ties won by nobody.

    >>> shares([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
    [1.0, 0.25, 0.25]
    """
    k = len(columns[0])
    won = [sum(column[i] > other + TIE for column in columns for other in column) for i in range(k)]
    return [count / (len(columns) * (k - 1)) for count in won] if k > 1 else [0.0] * k
