"""Worked numbers of each image reward, their gradients, and what is said where a model cannot be had."""

import base64
import inspect
import io
import math
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stages import parts
from stages.errors import UserError
from stages.images import decode, encode_picture, picture
from stages.label.rewards import _vision as vision
from stages.label.rewards import (
    aesthetic,
    brightness,
    clip_score,
    colourfulness,
    digit,
    hps,
    image_reward,
    pick_score,
)
from stages.label.rewards.caption_agreement import BLANK, caption_agreement, describe
from stages.label.rewards.compressibility import compressibility
from stages.label.rewards.digit import TRAIN, classifier, digits
from stages.label.rewards.incompressibility import incompressibility
from stages.records import Candidate
from tests.image import models
from tests.image.world import MODELLED, batch, candidate, models_of, noise, prompt, scene
from tests.label.world import tools

DIFFERENTIABLE = {m.__name__.rpartition(".")[2]: m for m in (brightness, colourfulness, digit)} | {
    m.__name__.rpartition(".")[2]: m for m in (aesthetic, clip_score, hps, image_reward, pick_score)
}


def one(reward, image, asked=None, **settings):
    return reward([asked or prompt()], [candidate(image)], **settings)[0]


# ---------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_the_part_is_its_pixels_on_the_decoded_images(name):
    part, settings = parts.find("reward", name), models_of(name)
    prompts, candidates = batch()
    told = part.function(prompts, candidates, **settings)
    low, high = part.spec.range
    for asked, seen, value in zip(prompts, candidates, told):
        if value is not None:
            felt = DIFFERENTIABLE[name].pixels(decode(seen.image)[None], [asked], **settings)
            assert felt.shape == (1,)
            assert value == pytest.approx(felt.clamp(low, high).item(), abs=max(1e-5, 1e-6 * (high - low)))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_pixels_takes_the_settings_of_its_part(name):
    taken = inspect.signature(DIFFERENTIABLE[name].pixels).parameters.values()
    ours = {p.name: p.default for p in taken if p.kind is p.KEYWORD_ONLY}
    assert ours == {key: p.default for key, p in parts.find("reward", name).settings.items()}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_agrees_with_finite_differences(name):
    """One central difference along the gradient, whose slope must be the gradient's norm."""
    settings = models_of(name)
    asked = [prompt(answer="3")]
    x = (0.8 * noise(1, 3, 16, 16)).requires_grad_()
    function = DIFFERENTIABLE[name].pixels
    (slope,) = torch.autograd.grad(function(x, asked, **settings).sum(), x)
    assert slope.norm() > 0
    step = 2e-3 * slope / slope.norm()
    with torch.no_grad():
        rise = function(x + step, asked, **settings) - function(x - step, asked, **settings)
    assert rise.item() == pytest.approx(4e-3 * slope.norm().item(), rel=0.05)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_no_weight_of_a_model_gathers_a_gradient(name):
    x = noise(2, 3, 16, 16).requires_grad_()
    before = torch.random.get_rng_state()
    DIFFERENTIABLE[name].pixels(x, [prompt(answer="3"), prompt(answer="4")], **models_of(name)).sum().backward()
    assert x.grad.isfinite().all()
    assert torch.equal(torch.random.get_rng_state(), before)
    if name in {"clip_score", "pick_score", "hps", "aesthetic"}:
        held = vision.clip(models_of(name)["model"], where="test")
        assert not held.training
        assert not any(p.requires_grad for p in held.parameters())


def test_a_broken_image_names_its_candidate():
    broken = Candidate(id="p/3", prompt="p", image=base64.b64encode(b"no picture").decode())
    for reward in (brightness.brightness, compressibility, caption_agreement):
        settings = {"encoder": tools().encoder} if reward is caption_agreement else {}
        with pytest.raises(UserError, match="candidate p/3 image: not a picture"):
            reward([prompt()], [broken], **settings)


# ---------------------------------------------------------------------------------------------------- plain rewards


@pytest.mark.parametrize(
    ("red", "green", "blue", "value"),
    [  # M on channels in [0, 1] of an image of one colour is 0.3 * length of (rg, yb)
        (1, 1, 1, 0.0),
        (1, 0, 0, 0.3 * math.sqrt(1.25)),
        (0, 0, 1, 0.3),
        (1, 1, 0, 0.3),
    ],
)
def test_colourfulness_of_one_colour(red, green, blue, value):
    flat = torch.tensor([red, green, blue]).view(3, 1, 1).expand(3, 4, 4) * 2.0 - 1
    assert one(colourfulness.colourfulness, flat) * colourfulness.MOST == pytest.approx(value, abs=1e-6)


def test_colourfulness_against_numpy_on_noise():
    image = noise(3, 16, 16)
    r, g, b = (np.asarray(picture(image)).astype(float) / 255).transpose(2, 0, 1)
    rg, yb = r - g, (r + g) / 2 - b
    expected = math.hypot(rg.std(), yb.std()) + 0.3 * math.hypot(rg.mean(), yb.mean())
    found = one(colourfulness.colourfulness, image)
    assert found * 255 * math.sqrt(1.25 * 1.09) == pytest.approx(255 * expected, rel=1e-5)


def test_colourfulness_reaches_one_and_no_more():
    """Reds and cyans whose mean is 0.3 * sqrt(1.25 / 1.09) long: a share s of red with 2 s - 1 = 0.3 / sqrt(1.09)."""
    share = (1 + 0.3 / math.sqrt(1.09)) / 2
    rows = round(share * 1000)
    red = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1)
    image = torch.cat([red.expand(3, rows, 1), -red.expand(3, 1000 - rows, 1)], 1)
    assert 0.9999 < one(colourfulness.colourfulness, image) <= 1.0


def test_colourfulness_of_grey_has_a_gradient_of_nought():
    grey = torch.zeros(1, 3, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(colourfulness.pixels(grey, [prompt()]).sum(), grey)
    assert torch.equal(slope, torch.zeros_like(grey))


@pytest.mark.parametrize(("half", "seen"), [("all", 1500), ("first", 750), ("second", 750)])
def test_digit_classifiers_read_held_out_digits(half, seen):
    images, labels = digits()
    right = classifier(half).cpu()(images[TRAIN:]).argmax(1) == labels[TRAIN:]
    assert right.float().mean() >= 0.92
    assert len(images[digit.PARTS[half]]) == seen


def test_digit_halves_share_no_example_and_differ():
    x = digits()[0][TRAIN:]
    first, second = (classifier(half).cpu()(x).softmax(1) for half in ("first", "second"))
    assert digit.PARTS["first"].stop <= digit.PARTS["second"].start
    assert (first - second).abs().max() > 0.5


def test_digit_is_trained_to_the_same_weights_whatever_happened_before():
    torch.manual_seed(3)
    again = classifier.__wrapped__("first")
    kept = classifier("first").cpu()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), kept.parameters()))


def test_digit_looks_for_the_digit_that_was_asked_for():
    images, labels = digits()
    own = [one(digit.digit, x, prompt(answer=str(int(y)))) for x, y in zip(images[1500:1550], labels[1500:1550])]
    after = [one(digit.digit, x, prompt(answer=str(int(y))), shift=1) for x, y in zip(images[1500:], labels[1500:1550])]
    assert sum(own) / 50 > -0.5
    assert sum(after) / 50 < -5
    assert all(-20 <= value <= 0 for value in own + after)
    x, y = images[1500], int(labels[1500])
    assert one(digit.digit, x, prompt(answer=str((y + 1) % 10))) == one(digit.digit, x, prompt(answer=str(y)), shift=1)


def test_digit_reads_larger_and_coloured_images_as_it_reads_their_small_grey_ones():
    small = digits()[0][1500]
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2).expand(3, -1, -1)
    asked = prompt(answer="1")
    assert one(digit.digit, large, asked) == pytest.approx(one(digit.digit, small, asked), abs=1e-4)


def test_digit_does_not_apply_without_a_digit():
    assert [one(digit.digit, noise(1, 8, 8), prompt(answer=a)) for a in (None, "", "seven", "12", "٣")] == [None] * 5
    with pytest.raises(UserError, match="prompt p: answer 'x' is no digit"):
        digit.pixels(noise(1, 1, 8, 8), [prompt(answer="x")])


def test_kilobytes_are_those_of_a_jpeg_of_the_enlarged_picture():
    image = noise(3, 8, 12)  # short side 8: enlarged eightfold
    out = io.BytesIO()
    pixels = np.asarray(picture(image)).repeat(8, 0).repeat(8, 1)
    Image.fromarray(pixels).save(out, format="JPEG", quality=95)
    assert one(incompressibility, image) == len(out.getvalue()) / 1000
    assert one(compressibility, image) == -one(incompressibility, image)


def test_kilobytes_of_a_large_picture_are_of_the_picture_itself():
    image = noise(1, 65, 80)
    out = io.BytesIO()
    picture(image).save(out, format="JPEG", quality=95)
    assert one(incompressibility, image) == len(out.getvalue()) / 1000


# ---------------------------------------------------------------------------------------------------- captions


@pytest.mark.parametrize(
    ("objects", "true", "false"),
    [
        ([{"shape": "cross", "color": "red"}], ["a cross", "a red cross"], ["a circle", "a blue cross", "two crosses"]),
        ([{"shape": "circle", "color": "blue", "count": 2}], ["two circles", "two blue circles"], ["a circle"]),
    ],
)
def test_what_is_said_of_a_scene_is_true(objects, true, false):
    said = describe(scene(*objects))
    assert set(true) <= set(said)
    assert not set(false) & set(said)


def test_what_is_said_of_two_objects_names_where_they_are():
    said = describe(scene({"shape": "cross", "color": "red"}, {"shape": "square", "color": "blue"}))
    assert {"a red cross and a blue square", "a blue square and a red cross", "a cross and a square"} <= set(said)
    where = [text.removeprefix("a cross ").removesuffix(" a square") for text in said if text.startswith("a cross ")]
    turned = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert all(f"a square {turned[w]} a cross" in said for w in where if w != "and")
    assert describe(torch.ones(3, 32, 32)) == [BLANK]


def test_caption_agreement_is_the_best_cosine():
    encoder = tools().encoder
    image = scene({"shape": "cross", "color": "red"})
    assert one(caption_agreement, image, prompt("a red cross"), encoder=encoder) == pytest.approx(1, abs=1e-6)
    asked = prompt("a green field")
    e = encoder.embed([asked.messages[0].content, *describe(image)])
    expected = (e[1:] @ e[0]).max().item()
    assert one(caption_agreement, image, asked, encoder=encoder) == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 8), (3, 40, 40), (3, 24, 33), (3, 50, 20)])
def test_images_are_prepared_as_clips_own_processor_does(shape):
    """Pillow rounds to 8 bits after each of its two passes: up to a level and a half of 255, over a spread of 0.26.

    It cuts overshoot after each pass too, torch once at the end; hence no extreme pixels here.
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = 0.5 * noise(*shape)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    expected = processor(picture(image).convert("RGB"), return_tensors="pt")["pixel_values"]
    found = vision.looked_at(decode(encode_picture(picture(image)))[None], 16)
    assert found.shape == (1, 3, 16, 16)
    assert (found - expected).abs().max() < 1.5 / 255 / 0.26


def test_clip_rewards_are_what_transformers_computes():
    """The model's own forward pass gives logits = exp(logit_scale) * cosine."""
    from transformers import AutoTokenizer, CLIPModel

    settings = models_of("pick_score")
    model, words = CLIPModel.from_pretrained(settings["model"]), AutoTokenizer.from_pretrained(settings["model"])
    images, captions = noise(3, 3, 16, 16), ["a cat", "a much longer caption of a dog", "a cat"]
    asked = [prompt(caption) for caption in captions]
    with torch.no_grad():
        seen = vision.looked_at(images, 16)
        out = model(**words(captions, padding=True, return_tensors="pt"), pixel_values=seen)
    logits = out.logits_per_image.diagonal()
    cosines = logits / model.logit_scale.exp()
    torch.testing.assert_close(pick_score.pixels(images, asked, **settings), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hps.pixels(images, asked, **settings), cosines, atol=1e-5, rtol=1e-4)
    found = clip_score.pixels(images, asked, model=settings["model"])
    torch.testing.assert_close(found, 100 * cosines.clamp(min=0), atol=1e-3, rtol=1e-4)


def test_a_caption_beyond_the_limit_is_cut():
    settings = models_of("hps")
    x = noise(1, 3, 16, 16)
    long, longer = (hps.pixels(x, [prompt("a" * n)], **settings) for n in (200, 400))
    assert torch.equal(long, longer)


def test_the_own_tokenizer_is_the_one_of_the_model():
    settings = models_of("pick_score")
    x, asked = noise(1, 3, 16, 16), [prompt()]
    own = pick_score.pixels(x, asked, model=settings["model"], tokenizer="")
    assert torch.equal(own, pick_score.pixels(x, asked, **settings))


def test_aesthetic_is_the_chain_of_its_layers(tmp_path):
    settings = models_of("aesthetic")
    x = noise(2, 3, 16, 16)
    e = vision.embed_images(vision.clip(settings["model"], where="test"), x)
    torch.testing.assert_close(e.norm(dim=1), torch.ones(2))
    layers = load_file(settings["head"])
    by_hand = e.T
    for n in (0, 2, 4):
        by_hand = layers[f"layers.{n}.weight"] @ by_hand + layers[f"layers.{n}.bias"][:, None]
    torch.testing.assert_close(aesthetic.pixels(x, [prompt()] * 2, **settings), by_hand[0])
    linear = {"weight": torch.ones(1, models.CLIP_WIDTH), "bias": torch.tensor([2.0])}  # the first version
    save_file(linear, tmp_path / "linear.safetensors")
    found = aesthetic.pixels(x, [prompt()] * 2, model=settings["model"], head=str(tmp_path / "linear.safetensors"))
    torch.testing.assert_close(found, e.sum(1) + 2)


def test_a_head_may_lie_in_a_folder_among_other_tensors(tmp_path):
    settings = models_of("aesthetic")
    named = {f"predictor.{key}": value for key, value in load_file(settings["head"]).items()}
    save_file(named | {"vision_model.embeddings.class_embedding": torch.ones(3)}, tmp_path / "model.safetensors")
    x = noise(1, 3, 16, 16)
    found = aesthetic.pixels(x, [prompt()], model=settings["model"], head=str(tmp_path))
    assert torch.equal(found, aesthetic.pixels(x, [prompt()], **settings))


def test_image_reward_is_standardised_and_reads_the_caption():
    """By transformers' own text encoder on the image encoder's patches, token by token as the authors do."""
    from transformers import AutoTokenizer, BlipForImageTextRetrieval

    folder = models_of("image_reward")["model"]
    model = BlipForImageTextRetrieval.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    layers = load_file(f"{folder}/reward_head.safetensors")
    x, captions = noise(2, 3, 16, 16), ["a cat", "a very long caption, " * 9]
    expected = []
    with torch.no_grad():
        for image, caption in zip(x, captions):
            read = words(caption, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
            patches = model.vision_model(pixel_values=vision.looked_at(image[None], 16)).last_hidden_state
            h = model.text_encoder(
                input_ids=read["input_ids"], attention_mask=read["attention_mask"], encoder_hidden_states=patches
            ).last_hidden_state[0, 0]
            for n in (0, 2, 4):
                h = layers[f"layers.{n}.weight"] @ h + layers[f"layers.{n}.bias"]
            expected.append((h.item() - 0.16717362830052426) / 1.0333394966054072)
    asked = [prompt(caption) for caption in captions]
    found = image_reward.pixels(x, asked, model=folder)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert image_reward.pixels(x, asked[::-1], model=folder).tolist() != pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="would ask the hub")
@pytest.mark.parametrize("name", MODELLED)
def test_a_model_that_cannot_be_had_is_one_line_before_any_work(name):
    with pytest.raises(UserError, match=f"^reward {name}.*(cannot be loaded|cannot be had|no head)") as error:
        parts.find("reward", name).function([], [])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", MODELLED)
def test_pickled_weights_are_refused(tmp_path, name):
    settings = models_of(name) | {"model": str(models.pickled(tmp_path / "model"))}
    with pytest.raises(UserError, match="only pickled weights"):
        parts.find("reward", name).function([], [], **settings)


@pytest.mark.parametrize(("name", "key"), [("clip_score", "visual_projection.weight"), ("image_reward", "text_enc")])
def test_a_model_without_all_its_weights_is_refused(tmp_path, name, key):
    folder = tmp_path / "model"
    shutil.copytree(models_of(name)["model"], folder)
    held = load_file(folder / "model.safetensors")
    lost = next(k for k in held if k.startswith(key))
    save_file({k: v for k, v in held.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lacks 1 weights of .*{lost}"):
        parts.find("reward", name).function([], [], model=str(folder))


@pytest.mark.parametrize(
    ("widths", "message"),
    [((5, 1), "a head for 5 features on a model that gives 24"), ((24, 3), "no chain of linear layers")],
)
def test_a_head_that_does_not_fit_is_refused(tmp_path, widths, message):
    head = models.head(tmp_path / "head.safetensors", widths)
    with pytest.raises(UserError, match=message):
        aesthetic.pixels(noise(1, 3, 16, 16), [prompt()], model=models_of("aesthetic")["model"], head=str(head))


def test_a_head_that_is_a_pickle_or_a_broken_chain_is_refused(tmp_path):
    torch.save({}, tmp_path / "head.pth")
    with pytest.raises(UserError, match="no head at"):
        vision.head(str(tmp_path / "head.pth"), where="test")
    broken = {"layers.0.weight": torch.ones(3, 4), "layers.0.bias": torch.ones(3), "layers.1.weight": torch.ones(1, 2)}
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match="no chain of linear layers"):
        vision.head(str(tmp_path / "broken.safetensors"), where="test")
