"""Statistical rejection sampling: of n draws those are kept that look drawn from the reward-tilted policy."""

import math
import random
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field

from stages.parts import part
from stages.records import Candidate, Prompt


@part(paper="arXiv 2309.06657", equation="algorithm 1", needs=("scores",), families=("text", "vision"))
def rejection(
    policy: Any,
    prompts: list[Prompt],
    k: int,
    seed: int,
    *,
    score: Callable[[list[Prompt], list[Candidate]], list[float]],
    n: Annotated[int, Field(ge=1)] = 64,
    beta: Annotated[float, Field(ge=0)] = 0.05,
    temperature: Annotated[float, Field(gt=0)] = 0.7,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    max_new_tokens: Annotated[int, Field(ge=1)] = 64,
) -> list[Candidate]:
    """K of n draws for each prompt, accepted with probability exp((r - r_max) / beta), in passes without replacement.

        until k are accepted:
            r_max = max of r over the draws that are left
            for each draw that is left, in order: accept where u < exp((r - r_max) / beta), u ~ U(0, 1)

    The best of those left is accepted in every pass. beta from 0 to infinity leads from the k best to the first k.
    The first to be accepted follows policy * exp(r / beta) / Z as n grows; the k together are less extreme.

    Args:
        policy: what samples.
        prompts: what it answers.
        k: candidates wanted of each prompt. Paper: 8.
        seed: names the random streams.
        score: the labelling panel, aligned lists in, more is better. Its range is [0, 1], and beta is in its unit.
        n: draws of a prompt; at least k are drawn. Paper: 64.
        beta: temperature of the tilt; not the objective's. Paper: 0.5 log-odds of a pairwise ranker, which is 0.05 of
            a panel whose temperature is 0.1.
        temperature: of the draws. Paper: 0.7.
        top_p: mass of the nucleus of the draws. The paper cuts to the 40 likeliest tokens instead.
        max_new_tokens: steps after which an answer is cut off.

    Returns:
        Candidates in a random order, named `<prompt id>/<place>`. Their `logps` are the policy's. With an answer its
        repetitions leave the draws; where fewer than k differ, the first of the repetitions fill up.

    Differences from the paper: its listing merges repeated draws before any is accepted, as keys of a dictionary; here
    an answer's chance to be accepted grows with its number of draws, as the tilted policy wants.

    Example: at beta = 0 the best two of four faces.

    >>> class Counting:  # draws 0, 1, 2, ...
    ...     def sample(self, prompts, k, *, seed, temperature, top_p, max_new_tokens):
    ...         return [Candidate(id=f"{p.id}/{i}", prompt=p.id, text=str(i), finished=True)
    ...                 for p in prompts for i in range(k)]
    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "Count."},))
    >>> most = lambda prompts, candidates: [float(c.text) for c in candidates]
    >>> sorted(c.text for c in rejection(Counting(), [ask], 2, seed=0, score=most, n=4, beta=0.0))
    ['2', '3']

    Source: Liu et al., Statistical Rejection Sampling Improves Preference Optimization, ICLR 2024, arXiv 2309.06657.
    """
    each = max(n, k)
    drawn = policy.sample(prompts, each, seed=seed, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
    scores = score([prompt for prompt in prompts for _ in range(each)], drawn)
    kept: list[Candidate] = []
    for start in range(0, len(drawn), each):
        own = slice(start, start + each)
        rng = random.Random(f"{seed}:{drawn[start].prompt}")
        chosen = accepted(scores[own], [c.content for c in drawn[own]], k, beta, rng)
        rng.shuffle(chosen)
        for place, i in enumerate(chosen):
            one = drawn[start + i]
            kept.append(one.model_copy(update={"id": f"{one.prompt}/{place}"}))
    return kept


def accepted(
    scores: Sequence[float], contents: Sequence[str], count: int, beta: float, rng: random.Random
) -> list[int]:
    """Which of some draws are accepted, in the order in which they are: `count` of them.

    >>> accepted([0.1, 0.9, 0.5], ["a", "b", "c"], 2, 0.0, random.Random(0))
    [1, 2]
    >>> accepted([0.1, 0.9, 0.5], ["a", "b", "c"], 2, math.inf, random.Random(0))
    [0, 1]
    """
    left, found, said = list(range(len(scores))), list[int](), set[str]()
    while left and len(found) < count:
        most = max(scores[i] for i in left)
        for i in left:
            chance = 1.0 if scores[i] == most else math.exp((scores[i] - most) / beta) if beta else 0.0
            if len(found) < count and contents[i] not in said and rng.random() < chance:
                found.append(i)
                said.add(contents[i])
        left = [i for i in left if contents[i] not in said]
    return found + [i for i in range(len(scores)) if i not in found][: count - len(found)]
