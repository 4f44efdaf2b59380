"""Directions: what prompts state, and where it is read."""

import pytest
from pydantic import ValidationError

from stages.directions import Directions, at, held_out, stated, training
from stages.records import Message, Prompt
from tests.label.world import prompt

WANTED = Directions(first="relevance", second="length")
MANY = [prompt(f"p{i}", f"Question {i}?") for i in range(400)]


@pytest.mark.parametrize("angle", [-90, -45, -22.5, 0, 13.7, 45, 180])
def test_what_is_stated_is_read_and_is_a_unit_vector_but_for_rounding(angle: float) -> None:
    v = stated(at(prompt(), WANTED, angle).messages)
    assert list(v) == ["relevance", "length"]
    assert v["relevance"] ** 2 + v["length"] ** 2 == pytest.approx(1, abs=0.015)


def test_a_prompt_without_a_direction_states_none() -> None:
    assert stated(prompt().messages) == {}
    asked = Message(role="user", content=at(prompt(), WANTED, 0).messages[0].content)
    assert stated([asked]) == {}, "nor does a user who writes like a system message"


def test_a_direction_stands_behind_what_the_system_message_says() -> None:
    ask = Prompt(id="p", messages=(Message(role="system", content="Be kind."), Message(role="user", content="?")))
    found = at(ask, WANTED, 0)
    assert [m.role for m in found.messages] == ["system", "user"]
    assert found.messages[0].content == "Be kind.\nAnswer so that 100 * relevance + 0 * length is as high as it can be."


def test_training_angles_are_spread_evenly_and_belong_to_the_prompt() -> None:
    found = training(MANY, WANTED, seed=3)
    second = sorted(stated(p.messages)["length"] for p in found)
    assert second[0] >= -0.71
    assert second[-1] <= 0.71
    assert abs(second[200]) < 0.1
    assert [p.id for p in found] == [p.id for p in MANY]
    assert training(MANY[5:9], WANTED, seed=3) == found[5:9]
    assert training(MANY[5:9], WANTED, seed=4) != found[5:9]


def test_every_held_out_prompt_is_asked_at_every_angle() -> None:
    found = held_out(MANY[:2], WANTED)
    assert [p.id for p in found][:3] == ["p0@-45", "p0@-22.5", "p0@0"]
    assert len(found) == 10
    assert [stated(p.messages)["relevance"] for p in found[:5]] == [0.71, 0.92, 1.0, 0.92, 0.71]


def test_names_are_single_words() -> None:
    with pytest.raises(ValidationError):
        Directions(first="to the point", second="length")
