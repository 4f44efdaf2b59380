"""Groups with the panel's own score."""

import random

from stages.label.pairings.scored import scored
from tests.label.world import candidate, prompt


def test_all_different_answers_best_first_with_what_they_carry() -> None:
    said = [
        candidate(text, i, score=score, tokens=(i, 9), logps=(-0.5, -float(i)))
        for i, (text, score) in enumerate([("a", 0.25), ("b", 0.75), ("a", 0.25), (" ", 1.0), ("c", None)])
    ]
    (group,) = scored(prompt(), said, random.Random(0), temperature=0.1)
    assert [(c.text, c.score) for c in group.completions] == [("b", 0.75), ("a", 0.25)]
    assert group.completions[0].logps == (-0.5, -1.0), "whose behaviour an objective may need"


def test_no_group_where_no_two_differ() -> None:
    for said in ([], [("a", 0.5)], [("a", 0.5), ("b", 0.5)], [("a", 0.2), ("a", 0.9)]):
        answers = [candidate(text, i, score=score) for i, (text, score) in enumerate(said)]
        assert scored(prompt(), answers, random.Random(0), temperature=0.1) == []
