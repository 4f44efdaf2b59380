"""The embedded image worlds: real pictures, balanced from the first prompt on, nothing held out leaks."""

from collections import Counter

import pytest
import torch
from sklearn.datasets import load_digits

from stages import images
from stages.errors import UserError
from stages.label.rewards.verifier import verifier
from stages.prepare.worlds import DIGITS, WORLDS, world
from stages.records import Candidate
from stages.scenes.words import KINDS, composition, scene


@pytest.mark.parametrize("name", WORLDS)
def test_world_is_its_seeds_alone(name):
    made, again, other = world(name, 60, 30, 0), world(name, 60, 30, 0), world(name, 60, 30, 1)
    assert made == again
    assert made != other
    assert [len(part) for part in made] == [60, 30]


@pytest.mark.parametrize("name", WORLDS)
def test_ids_are_unique(name):
    train, test = world(name, 250, 100, 3)
    assert len({prompt.id for prompt in train + test}) == 350


@pytest.mark.parametrize("name", ["digits", "scenes"])
def test_only_training_prompts_carry_a_picture(name):
    train, test = world(name, 250, 100, 3)
    assert all(len(prompt.given) == 1 and prompt.given[0].image for prompt in train)
    assert not any(prompt.given for prompt in test)


@pytest.mark.parametrize(("name", "of"), [("digits", "answer"), ("scenes", "kind")])
def test_the_first_prompts_are_balanced_whatever_their_number(name, of):
    for part in world(name, 100, 100, 0):
        for first in (20, 57, 100):
            counts = Counter(getattr(prompt, of) for prompt in part[:first])
            assert len(counts) == (10 if name == "digits" else len(KINDS))
            assert max(counts.values()) - min(counts.values()) <= 1


def test_digits_are_the_real_ones_each_once():
    data = load_digits()
    train, test = world("digits", 1500, 297, 0)
    assert {prompt.id for prompt in train} == {f"digit-{row:04d}" for row in range(1500)}
    assert {prompt.id for prompt in test} == {f"digit-{row:04d}" for row in range(1500, 1797)}
    for prompt in train + test:
        row = int(prompt.id[-4:])
        assert prompt.answer == str(data.target[row])
        assert prompt.messages[-1].content == f"a handwritten {DIGITS[int(prompt.answer)]}"
        assert prompt.kind == "digit"
        if prompt.given:
            real = torch.from_numpy(data.images[row]).float()[None] / 8 - 1
            torch.testing.assert_close(images.decode(prompt.given[0].image), real, atol=1.001 / 255, rtol=0)


def test_scenes_show_what_they_say_and_hold_out_compositions():
    train, test = world("scenes", 1200, 300, 0)
    shown = [Candidate(id=f"{prompt.id}/0", prompt=prompt.id, image=prompt.given[0].image) for prompt in train]
    assert set(verifier(train, shown)) == {1.0}
    known = {(prompt.kind, composition(scene(prompt.checks))) for prompt in train}
    assert not known & {(prompt.kind, composition(scene(prompt.checks))) for prompt in test}
    assert len({prompt.given[0].image for prompt in train}) > 1150  # the lattice repeats a few


def test_scenes_repeat_a_caption_only_once_all_of_its_kind_were_said():
    said = [prompt.messages[-1].content for prompt in world("scenes", 1, 216, 0)[1] if prompt.kind == "counting"]
    assert len(said) == len(set(said)) == 36


def test_faults_are_named():
    with pytest.raises(UserError, match="no world is called 'digit'; did you mean 'digits'"):
        world("digit", 1, 1, 0)
    with pytest.raises(UserError, match=r"params.yaml prepare.train: 1501 digits asked for, 1500 exist"):
        world("digits", 1501, 1, 0)
    with pytest.raises(UserError, match=r"params.yaml prepare.test: 298 digits asked for, 297 exist"):
        world("digits", 1, 298, 0)
