"""The gate: when self-play may go on, and what the next round starts from where it may not."""

import json
from pathlib import Path

import pytest

from stages.policies import family
from stages.records import Candidate
from stages.selfplay.gate import Gate, decide


def samples(scores: list[float | None], *, entropy: float | None = 1.0, finished: bool = True) -> list[Candidate]:
    return [
        Candidate(id=f"p{i}/0", prompt=f"p{i}", text="x", finished=finished, score=s, entropy=entropy)
        for i, s in enumerate(scores)
    ]


def test_a_fall_of_more_than_two_standard_errors_stops():
    """Differences -0.1, -0.2, -0.3: mean -0.2, spread 0.1, standard error 0.1 / sqrt(3), z = -2 sqrt(3)."""
    before, after = samples([0.5, 0.6, 0.7]), samples([0.4, 0.4, 0.4])
    verdict = decide(Gate(), before, after)
    assert verdict["z"] == pytest.approx(-2 * 3**0.5)
    assert verdict["change"] == pytest.approx(-0.2)
    assert verdict["continue"] is False
    assert "fell" in verdict["reasons"][0]
    assert decide(Gate(max_drop=10.0), before, after)["continue"] is True


def test_prompts_are_compared_with_themselves():
    """Hard and easy prompts spread widely, but each falls by about 0.1: pooled means would not show it."""
    before = samples([0.1, 0.5, 0.9])
    after = samples([0.01, 0.39, 0.8])
    assert decide(Gate(), before, after)["continue"] is False


def test_several_samples_of_a_prompt_count_as_their_mean():
    before = [*samples([0.2]), *samples([0.6])]
    assert decide(Gate(), before, samples([0.4]))["change"] == pytest.approx(0.0)


def test_a_rise_goes_on():
    assert decide(Gate(), samples([0.1, 0.2]), samples([0.5, 0.6]))["continue"] is True


def test_collapse_and_endless_answers_stop():
    even = samples([0.5, 0.5])
    assert decide(Gate(), even, samples([0.5, 0.5], entropy=0.01))["continue"] is False
    assert decide(Gate(), even, samples([0.5, 0.5], finished=False))["continue"] is False
    assert decide(Gate(max_clipped=1.0), even, samples([0.5, 0.5], finished=False))["continue"] is True


def test_what_has_no_entropy_and_no_score_is_judged_by_the_rest():
    verdict = decide(Gate(), samples([None]), samples([None], entropy=None))
    assert verdict == {"continue": True, "reasons": [], "clipped": 0.0}


def chain(folder: Path, gates: list[bool | None]) -> list[Path]:
    """Policies that each come from the one before, with what their gates said."""
    made = []
    for number, gate in enumerate(gates):
        policy = folder / str(number)
        policy.mkdir()
        if made:
            (policy / "previous.json").write_text(json.dumps({"previous": str(made[-1])}))
        if gate is not None:
            (policy / "gate.json").write_text(json.dumps({"continue": gate}))
        made.append(policy)
    return made


@pytest.mark.parametrize(
    ("gates", "kept"),
    [([None, True, True], 2), ([None, True, False], 1), ([None, False, False], 0), ([None, False, True], 2)],
)
def test_the_next_round_starts_from_the_last_policy_that_passed(tmp_path, gates, kept):
    policies = chain(tmp_path, gates)
    assert family.ancestors(policies[-1]) == policies
    assert family.passed(policies[-1]) == policies[kept]
