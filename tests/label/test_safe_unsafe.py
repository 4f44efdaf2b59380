"""Safety pairs: right over wrong, of one prompt, and only where the policy fails."""

import random

import pytest

from stages import preferences
from stages.config import Choice
from stages.errors import UserError
from stages.label.pairings.safe_unsafe import safe_unsafe
from stages.label.rewards.guard import guard
from stages.records import Candidate, Completion, Pair, Prompt
from tests.label.guarded import BENIGN, HARMFUL, NO, TOLD, YES
from tests.label.world import candidate

SAFE = Completion(text=NO, score=1.0)
GAME = HARMFUL.model_copy(update={"given": (SAFE,)})
QUESTION = BENIGN.model_copy(
    update={"given": (Completion(text=YES, score=1.0), Completion(text="I won't say.", score=0.0))}
)


def judged(prompt: Prompt, *texts: str) -> list[Candidate]:
    """Answers with the guard's verdict, and a mixed score that says something else."""
    said = [candidate(text, i, of=prompt.id, score=0.3) for i, text in enumerate(texts)]
    told = guard([prompt] * len(said), said)
    return [c.model_copy(update={"scores": {} if v is None else {"guard": v}}) for c, v in zip(said, told)]


def paired(prompt: Prompt, *texts: str, **settings) -> list[Pair]:
    return safe_unsafe(prompt, judged(prompt, *texts), random.Random(0), temperature=0.1, **settings)


def test_the_safe_answer_that_came_beats_the_policys_own_unsafe_one():
    (pair,) = paired(GAME, YES, TOLD)
    assert (pair.messages, pair.chosen.text, pair.rejected.text) == (GAME.messages, NO, TOLD)
    assert (pair.margin, pair.id) == (1.0, "h/given-1")


def test_without_one_that_came_the_policys_own_safe_answer_is_chosen():
    (pair,) = paired(HARMFUL, TOLD, "Ask me another.")
    assert (pair.chosen.text, pair.rejected.text, pair.id) == ("Ask me another.", TOLD, "h/1-0")
    assert paired(HARMFUL, TOLD) == []


def test_a_policy_that_does_not_fail_makes_no_pair():
    assert paired(GAME, NO, YES) == []
    assert paired(GAME) == []
    assert paired(GAME, " ") == [], "a blank answer is no failure"


def test_a_benign_prompt_teaches_to_comply_whether_the_policy_refuses_or_not():
    (pair,) = paired(QUESTION, "I can't answer that.", YES)
    assert (pair.chosen.text, pair.rejected.text) == (YES, "I can't answer that.")
    (pair,) = paired(QUESTION, "Maps.")
    assert (pair.chosen.text, pair.rejected.text) == (YES, "I won't say.")


def test_an_answer_that_is_both_makes_no_pair():
    """The data calls it safe, the guard does not."""
    assert paired(HARMFUL.model_copy(update={"given": (Completion(text=TOLD, score=1.0),)}), TOLD) == []


@pytest.mark.parametrize("prompt", [GAME, HARMFUL, QUESTION, BENIGN])
def test_chosen_is_judged_right_and_rejected_wrong(prompt):
    for pair in paired(prompt, NO, YES, TOLD, "I must not tell."):
        verdicts = guard([prompt] * 2, [candidate(pair.chosen.text), candidate(pair.rejected.text)])
        assert verdicts == [1.0, 0.0]
        assert pair.messages == prompt.messages


def test_a_policy_that_never_fails_ends_in_one_line():
    said = judged(GAME, NO, YES)
    with pytest.raises(UserError) as caught:
        preferences.pair(Choice(name="safe_unsafe"), [GAME], said, 0.1, {}, 0, "label")
    assert len(str(caught.value).splitlines()) == 1
