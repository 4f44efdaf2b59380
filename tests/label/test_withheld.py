"""What people read of prompts that are withheld: ids and verdicts, no text."""

from pathlib import Path

import pytest

from stages import preferences
from stages.evaluate.answers import Answers, Priced
from stages.evaluate.gather import samples, table
from tests.label.guarded import BENIGN, HARMFUL, SECRET, TOLD
from tests.label.world import candidate

HIDDEN = HARMFUL.model_copy(update={"checks": {**HARMFUL.checks, "withhold": True}})
SAID = [candidate(TOLD, of=one.id, scores={"guard": 0.0}) for one in (HIDDEN, BENIGN)]


def answers(name: str) -> Answers:
    even = [0.5] * 2
    logp, kl = [[-1.0]] * 2, Priced([-1.0] * 2, [-1.0] * 2, [1, 1])
    return Answers(name, Path(), SAID, SAID, logp, logp, [[TOLD]] * 2, kl, even, even)


@pytest.mark.parametrize(
    "rows",
    [
        preferences.table([HIDDEN, BENIGN], SAID),
        table(samples([HIDDEN, BENIGN], answers("base"), answers("optimize"))),
    ],
    ids=["scored candidates", "before and after"],
)
def test_a_table_shows_ids_and_verdicts(rows):
    hidden, shown = rows
    assert SECRET not in str(hidden)
    assert HARMFUL.messages[-1].content not in str(hidden)
    assert hidden["prompt"] == "[withheld: h]"
    assert 0.0 in hidden.values()
    assert TOLD in shown.values()
    assert shown["prompt"] == BENIGN.messages[-1].content


def test_the_report_credits_no_token_of_a_withheld_answer():
    hidden, shown = samples([HIDDEN, BENIGN], answers("base"), answers("optimize"))
    assert SECRET not in str(hidden)
    assert TOLD in str(shown)
