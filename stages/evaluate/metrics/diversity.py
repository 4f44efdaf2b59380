"""Diversity: how little the answers share with each other, and how little each repeats itself."""

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from stages.evaluate.metrics._rows import Rows
from stages.parts import part


@part(families=("text", "vision"), range=(0.0, 1.0))
class Diversity:
    """Shared and repeated n-grams of the answers to different prompts.

        diversity  = 1 - mean over ordered pairs i != j of |G_i and G_j| / |G_i|     G: the set of n-grams of an answer
        distinct_n = number of different n-grams / number of n-grams, all answers together (n = 1, 2)
        repetition = mean over answers of 1 - different / all of its own n-grams     (seq-rep-n)
        self_bleu  = mean over answers of its BLEU-4 with all the others as references

    A policy that answers everything alike has diversity 0, one that loops has repetition near 1. `distinct_n` falls as
    answers get longer or more: compare it only at equal size; `diversity` does not depend on the number of answers.
    Words are runs of letters and digits in lower case, other signs count one each. An answer too short to have an
    n-gram shares nothing and repeats nothing. One answer alone has diversity 1 and self-BLEU 0. Like `distinct_n`,
    self-BLEU moves with the number of answers: upwards, the more there are to be like.

    Args:
        n: size of the n-grams of `diversity`.
        repeat: size of the n-grams of `repetition`. Welleck et al.: 4.

    `update` takes `text` `[n]`. `mean_length` is in characters.

    >>> metric = Diversity()
    >>> metric.update(text=["the cat sat", "the cat ran", "a dog"])
    >>> {key: round(value, 3) for key, value in metric.compute().items()}  # doctest: +NORMALIZE_WHITESPACE
    {'diversity': 0.833, 'distinct_1': 0.75, 'distinct_2': 0.8, 'repetition': 0.0, 'self_bleu': 0.438,
     'mean_length': 9.0}

    Source: distinct-n: Li et al., NAACL 2016, arXiv 1510.03055; seq-rep-n: Welleck et al., ICLR 2020, arXiv 1908.04319;
    self-BLEU: Zhu et al., SIGIR 2018, arXiv 1802.01886.
    """

    def __init__(self, *, n: Annotated[int, Field(ge=1)] = 2, repeat: Annotated[int, Field(ge=1)] = 4) -> None:
        self.n, self.repeat = n, repeat
        self.rows = Rows("diversity")

    def update(self, text: Sequence[str]) -> None:
        """Add rows."""
        self.rows.add(text=text)

    def compute(self) -> dict[str, float]:
        """All shares in 0..1, and the mean length in characters."""
        texts = self.rows.texts("text")
        words = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]
        return {
            "diversity": 1 - overlap([set(grams(row, self.n)) for row in words]),
            "distinct_1": distinct([gram for row in words for gram in grams(row, 1)]),
            "distinct_2": distinct([gram for row in words for gram in grams(row, 2)]),
            "repetition": sum(1 - distinct(grams(row, self.repeat)) for row in words) / len(words),
            "self_bleu": self_bleu(words),
            "mean_length": sum(map(len, texts)) / len(texts),
        }


def grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams in order.

    >>> grams(["a", "b", "c"], 2)
    [('a', 'b'), ('b', 'c')]
    """
    return list(zip(*(words[start:] for start in range(n))))


def distinct(found: list[tuple[str, ...]]) -> float:
    """Share of different n-grams; 1 where there is none."""
    return len(set(found)) / len(found) if found else 1.0


def overlap(sets: list[set[tuple[str, ...]]]) -> float:
    """Mean of |A and B| / |A| over ordered pairs, in time linear in the text.

    A gram that occurs in d sets is met in d - 1 of the others.

    >>> overlap([{("a",), ("b",)}, {("b",)}])  # 1/2 and 1
    0.75
    """
    if len(sets) < 2:
        return 0.0
    spread = Counter(gram for found in sets for gram in found)
    shares = [sum(spread[gram] - 1 for gram in found) / len(found) for found in sets if found]
    return sum(shares) / (len(sets) * (len(sets) - 1))


def self_bleu(answers: list[list[str]], n: int = 4) -> float:
    """Mean BLEU of each answer against all the others, in time linear in the text.

    Orders without a match count one half of a match, so that a short answer is not 0 for the want of a 4-gram; orders
    that an answer is too short for are left out. An empty answer is like no other.

    >>> round(self_bleu([["a", "b", "c", "d"], ["a", "b", "c", "d"]]), 6), self_bleu([["a"]])
    (1.0, 0.0)
    """
    if len(answers) < 2:
        return 0.0
    counts = [[Counter(grams(words, order)) for words in answers] for order in range(1, n + 1)]
    tops = [_tops(of_order) for of_order in counts]
    lengths = sorted(map(len, answers))
    return sum(_bleu(i, answers, counts, tops, lengths) for i in range(len(answers))) / len(answers)


def _tops(counts: list[Counter]) -> dict[tuple[str, ...], tuple[int, int]]:
    """Of each n-gram the largest and the second largest count in any answer: the most others can have."""
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for one in counts:
        for gram, count in one.items():
            first, second = found.get(gram, (0, 0))
            found[gram] = (count, first) if count > first else (first, max(second, count))
    return found


def _bleu(i: int, answers: list[list[str]], counts: list, tops: list, lengths: list[int]) -> float:
    """BLEU of the i-th answer: geometric mean of clipped precisions times the brevity penalty."""
    size = len(answers[i])
    if not size:
        return 0.0
    logs = []
    for of_order, top in zip(counts, tops):
        own = of_order[i]
        if own:
            others = {gram: top[gram][1] if count == top[gram][0] else top[gram][0] for gram, count in own.items()}
            matched = sum(min(count, others[gram]) for gram, count in own.items())
            logs.append(math.log(max(matched, 0.5) / own.total()))
    nearest = _closest(lengths, size)
    return math.exp(sum(logs) / len(logs) + min(0.0, 1 - nearest / size))


def _closest(lengths: list[int], size: int) -> int:
    """The length of another answer that is closest to this one's, the shorter of two as close."""
    at = bisect_left(lengths, size)
    others = lengths[max(0, at - 1) : at] + lengths[at + 1 : at + 2]
    return min(others, key=lambda length: (abs(length - size), length))
