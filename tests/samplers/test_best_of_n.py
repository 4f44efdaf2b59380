"""The estimate of what the best of n is worth; the sampler itself is held against its law in tests/contract."""

import math
from itertools import combinations

import pytest

from stages.generate.samplers.best_of_n import expected_best

SCORES, WORTH = [0.3, 0.9, 0.1, 0.7, 0.5], [1.0, -2.0, 4.0, 0.5, 3.0]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_it_is_the_mean_over_all_subsets(n: int) -> None:
    subsets = list(combinations(range(5), n))
    best = [max(subset, key=SCORES.__getitem__) for subset in subsets]
    assert expected_best(SCORES, n) == pytest.approx(sum(SCORES[i] for i in best) / len(best))
    assert expected_best(SCORES, n, WORTH) == pytest.approx(sum(WORTH[i] for i in best) / len(best))


def test_one_is_the_mean_and_all_the_highest() -> None:
    assert expected_best(SCORES, 1) == pytest.approx(0.5)
    assert expected_best(SCORES, 5) == 0.9


@pytest.mark.parametrize("right", [0, 1, 4, 10])
def test_of_right_and_wrong_it_is_pass_at_n(right: int) -> None:
    """1 - C(N - c, n) / C(N, n) with c of N right."""
    scores = [1.0] * right + [0.0] * (10 - right)
    assert expected_best(scores, 3) == pytest.approx(1 - math.comb(10 - right, 3) / math.comb(10, 3))


def test_it_is_finite_for_many_draws() -> None:
    """The highest of n ranks out of N is n * (N + 1) / (n + 1) in the mean."""
    scores = [float(rank) for rank in range(1, 2001)]
    assert expected_best(scores, 1000) == pytest.approx(1000 * 2001 / 1001)
