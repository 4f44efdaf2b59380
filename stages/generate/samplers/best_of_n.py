"""Best-of-n: draw n answers and keep the one with the highest score; no training, the strongest cheap baseline."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import Field

from stages.parts import part
from stages.records import Candidate, Prompt


@part(paper="arXiv 2009.01325", needs=("scores",), families=("text", "vision"))
def best_of_n(
    policy: Any,
    prompts: list[Prompt],
    k: int,
    seed: int,
    *,
    score: Callable[[list[Prompt], list[Candidate]], list[float]],
    n: Annotated[int, Field(ge=1)] = 4,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    max_new_tokens: Annotated[int, Field(ge=1)] = 64,
) -> list[Candidate]:
    """The best of each of k disjoint groups of n independent draws.

        y_1..y_n ~ policy(. | x)        y = argmax_i score(x, y_i)

    KL(best-of-n || policy) <= log n - (n - 1) / n, and where no scores tie it beats one more draw of the policy with
    probability n / (n + 1). n = 1 is the policy itself.

    Args:
        policy: what samples.
        prompts: what it answers.
        k: candidates wanted of each prompt; n * k are drawn.
        seed: names the random streams.
        score: the labelling panel, aligned lists in, more is better.
        n: draws a candidate is the best of. Usual: 1 to 64.
        temperature: of the draws. Usual: 0.7 to 1.
        top_p: mass of the nucleus of the draws.
        max_new_tokens: steps after which an answer is cut off.

    Returns:
        Candidates ordered by prompt and group, named `<prompt id>/<group>`. Their `logps` are the policy's, not those
        of the best-of-n distribution: no importance ratio can be made of them.

    A tie goes to the first drawn, which is a fair choice among equal draws. Judge the result by another score than
    `score`: selecting and evaluating on one overstates quality.

    Differences from the paper: none.

    Example: the best of two draws, twice.

    >>> class Counting:  # draws 0, 1, 2, ...
    ...     def sample(self, prompts, k, *, seed, temperature, top_p, max_new_tokens):
    ...         return [Candidate(id=f"{p.id}/{i}", prompt=p.id, text=str(i), finished=True)
    ...                 for p in prompts for i in range(k)]
    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "Count."},))
    >>> most = lambda prompts, candidates: [float(c.text) for c in candidates]
    >>> [(c.id, c.text) for c in best_of_n(Counting(), [ask], 2, seed=0, score=most, n=2)]
    [('p/0', '1'), ('p/1', '3')]

    Source: Stiennon et al., Learning to summarize from human feedback, NeurIPS 2020, arXiv 2009.01325.
    """
    drawn = policy.sample(
        prompts, n * k, seed=seed, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens
    )
    scores = score([prompt for prompt in prompts for _ in range(n * k)], drawn)
    best = [max(range(start, start + n), key=scores.__getitem__) for start in range(0, len(drawn), n)]
    return [drawn[i].model_copy(update={"id": f"{drawn[i].prompt}/{g % k}"}) for g, i in enumerate(best)]


def expected_best(scores: Sequence[float], n: int, values: Sequence[float] | None = None) -> float:
    """Mean of the best of n draws, estimated without bias from N >= n draws: over all of their subsets of n.

        sum_i value_(i) * C(i - 1, n - 1) / C(N, n)        i the rank by score, the lowest is 1

    Args:
        scores: by which the best is chosen. Equal ones are ranked in the order given, which is a fair choice.
        n: draws that the best is one of.
        values: what the best is worth, its score where absent; another, true reward shows over-optimization.

    The mean for n = 1 and the highest for n = N; for scores 0 and 1 it is pass@n.

    >>> expected_best([3.0, 1.0, 2.0], 2)
    2.6666666666666665
    """
    total = math.comb(len(scores), n)
    order = sorted(range(len(scores)), key=scores.__getitem__)
    worth = scores if values is None else values
    return sum(worth[i] * (math.comb(rank, n - 1) / total) for rank, i in enumerate(order))
