"""Expectation-adjusted distinct n-grams: diversity across answers that does not fall because there is more text."""

import math
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from stages.evaluate.metrics._rows import Rows
from stages.evaluate.metrics.diversity import grams
from stages.parts import part


@part(paper="arXiv 2202.13587", equation="6", families=("text", "vision"), range=(0.0, math.inf))
class ExpectedDistinct:
    """Different n-grams of all answers, over how many as much text of evenly drawn words would be expected to have.

        EAD_n = N / (V^n * (1 - ((V^n - 1) / V^n)^C))        N different ones among C n-grams
        expected_distinct = mean over n = 1 .. `n`

    Near 1 where nothing repeats beyond chance; it falls as the same is said again. V is `vocabulary`, and V^n n-grams
    are held possible; a size taken from the answers would itself measure their diversity. Words are told apart as in
    `diversity`. Shi et al. use it for n = 1 .. 5 to see over-optimisation, of a tokenizer's tokens.

    Args:
        n: size of the largest n-grams.
        vocabulary: words that there are to draw from.

    `update` takes `text` `[n]`. An n for which no answer has an n-gram is left out; without any the metric is 0.

    Differences from the paper: V^n for n > 1, of which it does not speak.

    Example: 3 different of 4 words; of 2 words 4 draws are expected to show 2 * (1 - 1/16) = 1.875.

    >>> metric = ExpectedDistinct(n=1, vocabulary=2)
    >>> metric.update(text=["red sea", "red sky"])
    >>> metric.compute()
    {'expected_distinct': 1.6, 'expected_distinct_1': 1.6}

    Source: Liu et al., Rethinking and Refining the Distinct Metric, ACL 2022, arXiv 2202.13587; Shi et al.,
    Understanding Likelihood Over-optimisation in Direct Alignment Algorithms, 2024, arXiv 2410.11677.
    """

    def __init__(
        self, *, n: Annotated[int, Field(ge=1, le=10)] = 5, vocabulary: Annotated[int, Field(ge=2)] = 30000
    ) -> None:
        self.n, self.vocabulary = n, vocabulary
        self.rows = Rows("expected_distinct")

    def update(self, text: Sequence[str]) -> None:
        """Add rows."""
        self.rows.add(text=text)

    def compute(self) -> dict[str, float]:
        """`expected_distinct_<n>` of every n, and their mean."""
        words = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in self.rows.texts("text")]
        told: dict[str, float] = {}
        for n in range(1, self.n + 1):
            found = [gram for row in words for gram in grams(row, n)]
            if found:
                told[f"expected_distinct_{n}"] = len(set(found)) / expected(len(found), self.vocabulary**n)
        return {"expected_distinct": sum(told.values()) / max(1, len(told)), **told}


def expected(count: int, kinds: int) -> float:
    """How many different ones `count` even draws of so many kinds are expected to show.

    By way of log1p and expm1: with 30,000^5 kinds the fraction itself is 1 to the last digit.

    >>> expected(1, 10), round(expected(2, 10), 9), round(expected(100, 30000**5), 6)
    (1.0, 1.9, 100.0)
    """
    return -kinds * math.expm1(count * math.log1p(-1 / kinds))
