"""What every opponent must do: choose one policy of the history, and always the same."""

from pathlib import Path

import pytest

from stages import parts

HISTORY = [Path("data/sft"), Path("data/optimize"), *(Path(f"data/selfplay/r{n}") for n in range(1, 5))]


def chosen(name, **settings):
    """Whom an opponent chooses out of each history, from one policy to all of them."""
    opponent = parts.find("opponent", name)
    return [opponent.function(HISTORY[:length], **settings) for length in range(1, len(HISTORY) + 1)]


@pytest.mark.parametrize("name", parts.names("opponent"))
def test_it_chooses_out_of_the_history(name):
    assert all(one in HISTORY[:length] for length, one in enumerate(chosen(name), 1))
    assert chosen(name) == chosen(name)


def test_no_two_are_the_same():
    every = [tuple(chosen(name)) for name in parts.names("opponent")]
    assert len(set(every)) == len(every)


def test_a_random_checkpoint_may_be_any_and_each_alike():
    drawn = [chosen("random_checkpoint", seed=seed)[3] for seed in range(2000)]
    shares = [drawn.count(policy) / len(drawn) for policy in HISTORY[:4]]
    assert shares == pytest.approx([0.25] * 4, abs=0.04)  # four standard errors
