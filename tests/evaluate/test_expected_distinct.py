"""Expectation-adjusted distinct n-grams: by hand, at its limits, and beside the unadjusted share."""

import random

import pytest

from stages.evaluate.metrics.diversity import Diversity
from stages.evaluate.metrics.expected_distinct import ExpectedDistinct, expected


def measured(text: list[str], **settings) -> dict[str, float]:
    metric = ExpectedDistinct(**settings)
    metric.update(text=text)
    return metric.compute()


def test_by_hand() -> None:
    """Words: 3 different of 4, V = 10: 3 / (10 * (1 - 0.9^4)) = 3 / 3.439. Pairs: 2 of 2, V^2 = 100: 2 / 1.99."""
    found = measured(["a b", "a c"], n=2, vocabulary=10)
    assert found["expected_distinct_1"] == pytest.approx(3 / 3.439)
    assert found["expected_distinct_2"] == pytest.approx(2 / 1.99)
    assert found["expected_distinct"] == pytest.approx((3 / 3.439 + 2 / 1.99) / 2)


def test_text_that_never_repeats_tends_to_one_in_a_large_vocabulary() -> None:
    text = [" ".join(f"w{40 * row + i}" for i in range(40)) for row in range(5)]
    values = [measured(text, vocabulary=v)["expected_distinct_1"] for v in (300, 3000, 30_000, 10**9)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1.0, abs=1e-6)


def test_the_same_answer_again_and_again_lowers_it() -> None:
    values = [measured(["the cat sat on the mat"] * count)["expected_distinct"] for count in (1, 2, 8, 64)]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.05


def test_evenly_drawn_words_have_one_whatever_their_number() -> None:
    """Where the unadjusted share falls from 0.9 to 0.2 as there is more of the same text."""
    rng = random.Random(0)
    plain, adjusted = [], []
    for count in (20, 200, 2000):
        text = [" ".join(f"w{rng.randrange(500)}" for _ in range(count))]
        metric = Diversity()
        metric.update(text=text)
        plain.append(metric.compute()["distinct_1"])
        adjusted.append(measured(text, n=1, vocabulary=500)["expected_distinct"])
    assert plain[0] > 0.9
    assert plain[-1] < 0.3
    assert adjusted == pytest.approx([1.0] * 3, abs=0.1)


def test_short_answers_have_no_long_ngrams() -> None:
    assert set(measured(["one two", "three"])) == {"expected_distinct", "expected_distinct_1", "expected_distinct_2"}
    assert measured(["", " "]) == {"expected_distinct": 0.0}


@pytest.mark.parametrize("kinds", [2, 7, 30_000])
def test_what_is_expected_is_the_mean_over_draws(kinds) -> None:
    rng = random.Random(1)
    mean = sum(len({rng.randrange(kinds) for _ in range(10)}) for _ in range(4000)) / 4000
    assert expected(10, kinds) == pytest.approx(mean, rel=0.02)
