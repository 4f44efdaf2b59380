"""Scenes: what is drawn is what was asked, what is seen is what was drawn, and the verdicts by hand."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from stages import images
from stages.errors import UserError
from stages.label.rewards.verifier import verifier
from stages.records import Candidate, Message, Prompt
from stages.scenes.draw import GAP, LATTICE, RGB, SIDE, place, render
from stages.scenes.look import Found, detect, relations, verify
from stages.scenes.words import (
    COLORS,
    KINDS,
    SHAPES,
    Scene,
    Thing,
    caption,
    composition,
    everything,
    scene,
    split,
    vocabulary,
)

SCENES = [spec for kind in KINDS for spec in random.Random(kind).choices(everything(kind), k=400)]
RED_CIRCLE = {"shape": "circle", "color": "red", "count": 1}
BLUE_SQUARE = {"shape": "square", "color": "blue", "count": 1}
BESIDE = {"objects": [RED_CIRCLE, BLUE_SQUARE], "relation": {"a": 0, "b": 1, "where": "left of"}}


def draw(*objects: dict, seed: int = 0, **relation) -> torch.Tensor:
    return render(scene({"objects": list(objects), **relation}), seed)


def shows(found: list[Found], spec: Scene) -> bool:
    """Exactly the objects of a scene, by plain counting."""
    seen = Counter()
    for thing in spec.objects:
        named = [name for name in ("shape", "color", "size") if getattr(thing, name)]
        alike = [one for one in found if all(getattr(one, name) == getattr(thing, name) for name in named)]
        seen[thing] = len(alike) == thing.count
    return all(seen.values()) and len(found) == sum(thing.count for thing in spec.objects)


def corrupt(pixels: torch.Tensor, blur: float, noise: float, rng: np.random.Generator) -> torch.Tensor:
    blurred = ndimage.gaussian_filter(pixels.numpy(), (0, blur, blur))
    return torch.from_numpy(blurred + noise * rng.standard_normal(blurred.shape)).float().clamp(-1, 1)


def test_every_clean_scene_is_seen_as_drawn_and_granted():
    for seed, spec in enumerate(SCENES):
        verdict = verify(render(spec, seed), spec.checks)
        assert shows(verdict["found"], spec), (seed, caption(spec))
        assert (verdict["correct"], verdict["score"], verdict["reason"]) == (True, 1.0, ""), (seed, caption(spec))


@pytest.mark.parametrize(("blur", "noise", "least"), [(0.5, 0.2, 0.99), (0.7, 0.1, 0.99), (1.0, 0.1, 0.97)])
def test_blurred_and_noisy_scenes_are_still_seen(blur, noise, least):
    rng = np.random.default_rng(0)
    right = [shows(detect(corrupt(render(spec, s), blur, noise, rng)), spec) for s, spec in enumerate(SCENES[::2])]
    assert sum(right) >= least * len(right)


def test_scenes_keep_their_objects_apart_and_whole():
    for seed, spec in enumerate(SCENES):
        boxes = [box for _, box in place(spec, np.random.default_rng(seed))]
        for number, (left, top, right, bottom) in enumerate(boxes):
            assert left % LATTICE == top % LATTICE == 0
            assert max(right, bottom) <= SIDE
            for other in boxes[:number]:
                across = max(other[0] - right, left - other[2])
                down = max(other[1] - bottom, top - other[3])
                assert max(across, down) >= GAP


def test_render_is_its_seeds_alone_and_flat():
    first, again, other = draw(RED_CIRCLE), draw(RED_CIRCLE), draw(RED_CIRCLE, seed=1)
    assert first.shape == (3, SIDE, SIDE)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=1).T) == 2  # an object and a ground


def test_what_a_scene_leaves_open_is_drawn_at_random():
    seen = [detect(draw({"shape": "cross", "count": 1}, seed=seed))[0] for seed in range(100)]
    assert {one.color for one in seen} == set(COLORS)
    assert {one.size for one in seen} == {"small", "large"}
    assert len({one.centre for one in seen}) > 50


def test_colours_are_named_as_they_are():
    assert set(RGB) == set(COLORS)
    for color in COLORS:
        assert detect(draw({"shape": "square", "color": color, "count": 1}))[0].color == color


@pytest.mark.parametrize("where", ["left of", "right of", "above", "below"])
def test_relation_is_drawn_and_read_the_right_way_round(where):
    checks = BESIDE | {"relation": {"a": 0, "b": 1, "where": where}}
    for seed in range(100):
        circle, square = sorted(detect(render(scene(checks), seed)), key=lambda found: found.shape)
        (x, y), (x2, y2) = circle.centre, square.centre
        assert {"left of": x < x2, "right of": x > x2, "above": y < y2, "below": y > y2}[where]
        assert relations(circle.box, square.box) == {where}


def test_relations_by_hand():
    # Centres 20 to the right and 20 down: each share is 16.8 / 28.3 = 0.59 after 0.1 x (8 + 8) is taken off, over 1/2.
    assert relations((20, 20, 28, 28), (0, 0, 8, 8)) == {"right of", "below"}
    # Centres 1 apart, boxes of 8: within 1.6, so nowhere in particular.
    assert relations((1, 0, 9, 8), (0, 0, 8, 8)) == set()
    # 20 to the left and 8 up: 18.4 / 21.5 = 0.85 and 6.4 / 21.5 = 0.30.
    assert relations((0, 0, 8, 8), (20, 8, 28, 16)) == {"left of"}


BOTH = [RED_CIRCLE, BLUE_SQUARE]
TWO_BLUE = {"shape": "square", "color": "blue", "count": 2}


@pytest.mark.parametrize(
    ("shown", "score", "reasons"),
    [
        # Wishes: number, circle, red, square, blue.
        (BOTH, 5, ""),
        (
            [RED_CIRCLE],
            2.5,
            "expected objects=2, found 1\nexpected square>=1, found 0\nexpected blue square>=1, found 0",
        ),
        ([RED_CIRCLE, {**BLUE_SQUARE, "color": "green"}], 4, "expected blue square>=1, found 0"),
        # Attributes bound to the wrong objects: the shapes match first, so both colours are wrong.
        (
            [{**RED_CIRCLE, "color": "blue"}, {**BLUE_SQUARE, "color": "red"}],
            3,
            "expected red circle>=1, found 0\nexpected blue square>=1, found 0",
        ),
        # One square too many: the number is right by 2/3.
        ([RED_CIRCLE, TWO_BLUE], 4 + 2 / 3, "expected objects=2, found 3"),
    ],
)
def test_verdict_by_hand(shown, score, reasons):
    verdict = verify(draw(*shown), {"objects": BOTH})
    assert verdict["score"] == pytest.approx(score / 5)
    assert verdict["reason"] == reasons
    assert verdict["correct"] is (reasons == "")


def test_verdict_of_counts_and_sizes():
    wish = {"objects": [{"shape": "square", "color": "blue", "size": "small", "count": 3}]}
    two = verify(draw(TWO_BLUE | {"size": "small"}), wish)
    assert two["score"] == pytest.approx(2 / 3)  # number, shape, colour and size each hold for two of three
    large = verify(draw(TWO_BLUE | {"size": "large", "count": 3}), wish)
    assert large["score"] == pytest.approx(3 / 4)
    assert large["reason"] == "expected small square>=3, found 0"


def test_verdict_of_a_relation():
    turned = BESIDE | {"relation": {"a": 0, "b": 1, "where": "right of"}}
    verdict = verify(render(scene(turned), 0), BESIDE)
    assert verdict["score"] == pytest.approx(5 / 6)
    assert verdict["reason"] == "expected circle left of target"
    assert verify(draw(RED_CIRCLE), BESIDE)["score"] == pytest.approx(2.5 / 6)


def test_same_shape_twice_is_matched_one_to_one():
    wish = {"objects": [{"shape": "circle", "count": 1}, RED_CIRCLE]}
    assert verify(draw(RED_CIRCLE, RED_CIRCLE | {"color": "blue"}), wish)["correct"]
    assert not verify(draw(RED_CIRCLE), wish)["correct"]


def test_a_blank_a_flooded_and_a_noisy_picture_show_nothing():
    ground, red = torch.ones(3, 32, 32), torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 32, 32)
    noise = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for pixels in (ground, red, noise, torch.ones(1, 8, 8)):
        assert not [found for found in detect(pixels) if found.shape]
    assert verify(ground, BESIDE)["score"] == 0.0


def test_a_bar_and_a_ring_are_no_shape():
    bar, ring = torch.ones(3, 32, 32), draw({"shape": "circle", "color": "red", "size": "large", "count": 1})
    bar[1:, 10:14, 4:24] = -1
    left, top, right, bottom = map(int, detect(ring)[0].box)
    ring[:, top + 2 : bottom - 2, left + 2 : right - 2] = 1
    for pixels in (bar, ring):
        assert [found.shape for found in detect(pixels)] == [""]


def test_pictures_of_other_sizes_are_read_in_the_same_units():
    pixels = draw(RED_CIRCLE | {"size": "small"})
    bigger = pixels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert detect(bigger)[0] == detect(pixels)[0]


def test_captions_are_plain_english():
    said = {kind: {caption(spec) for spec in everything(kind)} for kind in KINDS}
    assert {"a circle", "a small cross"} <= said["single_object"]
    assert {"a red circle", "a large blue square"} <= said["colors"]
    assert {"three green squares", "two small blue crosses"} <= said["counting"]
    assert "a circle and a square" in said["two_object"]
    assert "a red circle left of a green square" in said["position"]
    assert "a red circle and a blue square" in said["color_attr"]
    things = (Thing(shape="cross"), Thing(shape="circle"), Thing(shape="square", count=2))
    three = Scene(objects=things, relation={"a": 2, "b": 0, "where": "below"})
    assert caption(three) == "two squares below a cross and a circle"
    assert len(vocabulary()) == 26
    total = [caption(spec) for kind in KINDS for spec in everything(kind)]
    assert len(total) == len(set(total)), "two scenes share a caption"


def test_held_out_compositions_are_never_trained_on_and_their_words_are():
    words = {word for kind in KINDS for spec in split(kind)[0] for word in caption(spec).split()}
    assert words == set(vocabulary())
    for kind in KINDS:
        train, test = split(kind)
        assert test
        assert len(train) + len(test) == len(everything(kind))
        assert not {composition(spec) for spec in train} & {composition(spec) for spec in test}


def test_composition_is_the_same_said_from_either_side():
    a, b = Thing(shape="circle", color="red"), Thing(shape="square", color="blue", size="small")
    turned = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for where, other in turned.items():
        one = Scene(objects=(a, b), relation={"a": 0, "b": 1, "where": where})
        assert composition(one) == composition(Scene(objects=(b, a), relation={"a": 0, "b": 1, "where": other}))
        assert composition(one) != composition(Scene(objects=(a, b), relation={"a": 0, "b": 1, "where": other}))
    assert composition(Scene(objects=(a, b))) == composition(Scene(objects=(b, a)))


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({}, "where: objects: Field required; see stages/scenes/words.py"),
        ({"objects": [{"shape": "star"}]}, "where: objects.0.shape: Input should be 'circle', 'square'"),
        ({"objects": [{"shape": "cross", "colour": "red"}]}, "where: objects.0.colour: Extra inputs"),
        ({**BESIDE, "relation": {"a": 0, "b": 2, "where": "above"}}, "where: row: the relation is not between two"),
        ({**BESIDE, "relation": {"a": 1, "b": 1, "where": "above"}}, "where: row: the relation is not between two"),
    ],
)
def test_wrong_checks_are_named(checks, message):
    with pytest.raises(UserError, match=message):
        scene(checks, where="where")


def test_a_scene_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="no room for four large red circles and four large red squares"):
        render(Scene(objects=tuple(Thing(shape=s, color="red", size="large", count=4) for s in SHAPES[:2])), 0)


def test_verifier_scores_pictures_and_says_nothing_where_nothing_is_wished():
    ask = Prompt(id="p", messages=(Message(role="user", content="a red circle and a blue square"),))
    asked = ask.model_copy(update={"checks": {"objects": BOTH}})
    image = images.encode(draw(RED_CIRCLE))
    shown = Candidate(id="p/0", prompt="p", image=image)
    assert verifier([asked], [shown]) == [0.5]
    assert verifier([asked], [shown], partial=False) == [0.0]
    assert verifier([ask], [shown]) == [None]
    assert verifier([asked], [Candidate(id="p/0", prompt="p", text="a red circle")]) == [0.0]
    with pytest.raises(UserError, match="^prompt p checks: objects.0.shape"):
        verifier([ask.model_copy(update={"checks": {"objects": [{"shape": "star"}]}})], [shown])
