"""Pairs of one aspect with the others' say in their margin."""

import math
import random

import pytest

from stages import declared
from stages.errors import UserError
from stages.label.pairings.aspect import aspect, odds
from stages.panel import Panel
from stages.records import Pair
from tests.label.world import candidate, prompt

PANEL = declared.of(Panel(rewards={name: {} for name in ("relevance", "length", "reward_model")}))
SAID = [
    candidate(text, i, score=0.5, scores={"relevance": r, "length": n, "reward_model": p})
    for i, (text, r, n, p) in enumerate([("a", 0.9, 0.2, 0.5), ("b", 0.6, 0.4, 0.75), ("c", 0.6, 0.9, 0.2)])
]


def made(**settings) -> dict[str, Pair]:
    """All pairs, by their texts."""
    pairs = aspect(
        prompt(), SAID, random.Random(0), temperature=0.1, rewards=PANEL, **{"by": "relevance", "count": 9, **settings}
    )
    return {pair.chosen.text + pair.rejected.text: pair for pair in pairs}


def test_worked_numbers() -> None:
    """Log-odds: length over 0.1, the reward model's chance by its logit: 0, log 3 and -log 4.

    The margin of a over b is 0.5 * (2 - 4) + 2 * (0 - log 3), that of a over c 0.5 * (2 - 9) + 2 * log 4.
    """
    pairs = made(margins={"length": 0.5, "reward_model": 2.0})
    assert set(pairs) == {"ab", "ac"}, "b and c are equally relevant"
    assert pairs["ab"].margin == pytest.approx(-1 - 2 * math.log(3))
    assert pairs["ac"].margin == pytest.approx(-3.5 + 2 * math.log(4))


def test_order_and_probability_are_those_of_one_reward() -> None:
    pair = made(margins={"length": 5.0})["ab"]
    assert (pair.chosen.score, pair.rejected.score) == pytest.approx((0.9, 0.6))
    assert pair.prob == pytest.approx(1 / (1 + math.exp(-3)))
    assert pair.chosen_rate > 0.5 > pair.rejected_rate


def test_a_chance_that_orders_counts_by_its_logit() -> None:
    pairs = made(by="reward_model", margins={"length": 1.0})
    assert set(pairs) == {"ba", "bc", "ac"}
    assert pairs["ba"].prob == pytest.approx(0.75)
    assert pairs["bc"].margin == pytest.approx(4 - 9)


def test_without_margins_there_is_none() -> None:
    assert all(pair.margin == 0.0 for pair in made().values())


def test_an_answer_that_a_reward_says_nothing_of_makes_no_pair() -> None:
    """Two rewards that say something of the same two answers only leave one pair of them."""
    mute = SAID[0].model_copy(update={"scores": {"relevance": 0.9}})
    ask = prompt()
    found = aspect(
        ask,
        [mute, *SAID[1:]],
        random.Random(0),
        temperature=0.1,
        rewards=PANEL,
        by="length",
        margins={"relevance": 1.0},
        count=9,
    )
    assert [(one.chosen.text, one.rejected.text) for one in found] == [("c", "b")]


def test_a_reward_that_is_none_is_named() -> None:
    told = [one.model_copy(update={"scores": {"lenght": 0.1 * i}}) for i, one in enumerate(SAID)]
    with pytest.raises(UserError, match="did you mean 'length'"):
        aspect(prompt(), told, random.Random(0), temperature=0.1, rewards=PANEL, by="lenght")


def test_certain_chances_stay_finite() -> None:
    assert math.isfinite(odds(PANEL["reward_model"], 1.0, 0.1) - odds(PANEL["reward_model"], 0.0, 0.1))
