"""The best answer in the direction that a prompt states."""

import random

import pytest

from stages import declared
from stages.directions import Directions, at
from stages.label.pairings.directed import directed
from stages.panel import Panel
from stages.records import Candidate, Single
from tests.label.world import candidate, prompt

PANEL = declared.of(Panel(rewards={"relevance": {}, "length": {}}))
WANTED = Directions(first="relevance", second="length")
SAID = [
    candidate(text, i, score=s, scores={"relevance": r, "length": n})
    for i, (text, s, r, n) in enumerate([("short", 0.2, 0.9, 0.1), ("middle", 0.1, 0.8, 0.6), ("long", 0.9, 0.5, 1.0)])
]


def kept(angle: float | None, said: list[Candidate] = SAID) -> list[Single]:
    ask = prompt() if angle is None else at(prompt(), WANTED, angle)
    return directed(ask, said, random.Random(0), temperature=0.1, rewards=PANEL)


@pytest.mark.parametrize(("angle", "best"), [(-45, "short"), (0, "short"), (22.5, "middle"), (90, "long")])
def test_the_direction_decides(angle: float, best: str) -> None:
    """At 22.5 degrees 0.92 r + 0.38 l: 0.866, 0.964, 0.84; at 0 best-of-n on the first reward."""
    (one,) = kept(angle)
    assert one.completion.text == best
    assert one.label is True
    assert one.messages[0].role == "system", "the demonstration is of the prompt with its direction"


def test_worked_score() -> None:
    assert kept(22.5)[0].completion.score == pytest.approx(0.92 * 0.8 + 0.38 * 0.6)


def test_without_a_direction_the_mixed_score_decides() -> None:
    (one,) = kept(None)
    assert (one.completion.text, one.completion.score) == ("long", 0.9)
    assert [message.role for message in one.messages] == ["user"]


def test_one_candidate_is_kept_as_it_is() -> None:
    assert kept(45, SAID[:1])[0].completion.text == "short"


@pytest.mark.parametrize("angle", [-45, -10, 5, 40])
def test_the_kept_one_is_never_below_the_mean(angle: float) -> None:
    told = [kept(angle, [one])[0].completion.score for one in SAID]
    assert kept(angle)[0].completion.score == max(told) >= sum(told) / 3


def test_blank_answers_and_answers_without_the_scores_are_left_out() -> None:
    bare = candidate("said", 3, score=1.0, scores={"relevance": 1.0})
    blank = candidate(" ", 4, score=1.0, scores={"relevance": 1.0, "length": 1.0})
    assert kept(0, [bare, blank]) == []
    assert kept(0, [bare, blank, *SAID])[0].completion.text == "short"
