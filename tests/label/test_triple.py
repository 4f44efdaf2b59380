import random

from stages.label.pairings.triple import triple
from stages.records import Candidate
from tests.label.world import candidate, prompt


def taken(scores: list[float], seed: int = 0) -> list[str]:
    """Which of the answers a, b, c, ... with these scores make the triple, best first."""
    said: list[Candidate] = [candidate("abcdefgh"[i], i, score=score) for i, score in enumerate(scores)]
    made = triple(prompt(), said, random.Random(seed), temperature=0.1)
    return [one.text for each in made for one in each.completions]


def test_highest_second_highest_and_lowest() -> None:
    assert taken([0.1, 0.9, 0.5, 0.7]) == ["b", "d", "a"]
    assert taken([0.3, 0.2, 0.1]) == ["a", "b", "c"]


def test_fewer_than_three_scores_make_no_triple() -> None:
    assert taken([0.9, 0.9, 0.1, 0.1]) == []
    assert taken([0.3, 0.1 + 0.2, 0.1]) == [], "equal up to the last digit"
    assert taken([0.9, 0.1]) == []


def test_ties_are_broken_by_chance() -> None:
    """Of a, b and d at the top, c below and e and f at the bottom, each may stand for its level."""
    found = {tuple(taken([0.9, 0.9, 0.5, 0.9, 0.1, 0.1], seed)) for seed in range(60)}
    assert found == {(top, "c", low) for top in "abd" for low in "ef"}


def test_scores_come_along_and_copies_do_not() -> None:
    said = [candidate(text, i, score=s) for i, (text, s) in enumerate([("x", 0.9), ("x", 0.6), ("y", 0.5), ("z", 0.0)])]
    (made,) = triple(prompt(), said, random.Random(0), temperature=0.1)
    assert [(one.text, one.score) for one in made.completions] == [("x", 0.9), ("y", 0.5), ("z", 0.0)]
