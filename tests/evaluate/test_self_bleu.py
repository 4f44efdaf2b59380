"""Self-BLEU: worked numbers, and the linear count against a plain loop over all other answers."""

import math
import random
from collections import Counter

import pytest

from stages.evaluate.metrics.diversity import Diversity, grams, self_bleu


def plain(answers: list[list[str]], n: int = 4) -> float:
    """BLEU as Papineni et al. write it, each answer against every other, with half a match where there is none."""
    told = []
    for i, answer in enumerate(answers):
        others = [other for j, other in enumerate(answers) if j != i]
        if not answer:
            told.append(0.0)
            continue
        precisions = []
        for order in range(1, n + 1):
            own = Counter(grams(answer, order))
            if own:
                best = {gram: max(Counter(grams(other, order))[gram] for other in others) for gram in own}
                matched = sum(min(count, best[gram]) for gram, count in own.items())
                precisions.append(max(matched, 0.5) / sum(own.values()))
        nearest = min((len(other) for other in others), key=lambda size: (abs(size - len(answer)), size))
        brevity = 1.0 if len(answer) >= nearest else math.exp(1 - nearest / len(answer))
        told.append(brevity * math.prod(precisions) ** (1 / len(precisions)))
    return sum(told) / len(told)


def test_worked_numbers() -> None:
    """Between "a b c d e" and "a b c d x" 4/5, 3/4, 2/3, 1/2: (0.2)^(1/4) = 0.668740."""
    assert self_bleu([list("abcde"), list("abcdx")]) == pytest.approx(0.668740, abs=1e-6)


def test_brevity() -> None:
    """Of "a b" beside "a b c d": 1 and 1, times exp(1 - 4/2); the longer has 2/4, 1/3, 1/2 of 2, 1/2 of 1."""
    longer = (2 / 4 * 1 / 3 * 1 / 4 * 1 / 2) ** 0.25
    assert self_bleu([list("ab"), list("abcd")]) == pytest.approx((math.exp(-1) + longer) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_plain_loop(seed: int) -> None:
    rng = random.Random(seed)
    answers = [rng.choices("abcd", k=rng.randint(0, 9)) for _ in range(12)]
    assert self_bleu(answers) == pytest.approx(plain(answers), rel=1e-12)


def test_its_ends() -> None:
    metric = Diversity()
    metric.update(text=["the same five words here"] * 3)
    assert metric.compute()["self_bleu"] == pytest.approx(1)
    apart = Diversity()
    apart.update(text=["one two three four five six", "seven eight nine ten eleven twelve"])
    assert apart.compute()["self_bleu"] < 0.2
    alone = Diversity()
    alone.update(text=["nobody else"])
    assert alone.compute()["self_bleu"] == 0
