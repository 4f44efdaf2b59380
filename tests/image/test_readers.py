"""Image columns of data sets: whichever way a picture is written, it is the same completion, or a counted refusal."""

import base64
import contextlib
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.errors import UserError
from stages.images import decode, picture
from stages.prepare.pictures import drawn
from stages.prepare.readers import Read, read_prompts
from stages.prepare.values import Fault
from stages.records import Prompt


def file(value: float, form: str = "JPEG", *, channels: int = 3) -> bytes:
    out = io.BytesIO()
    picture(torch.full((channels, 8, 8), value)).save(out, format=form)
    return out.getvalue()


def text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


DARK, LIGHT = file(-0.5), file(0.5)
PICK = {
    "are_different": True,
    "best_image_uid": "one",
    "caption": "a red bicycle",
    "created_at": "2023-03-01",
    "has_label": True,
    "image_0_uid": "nought",
    "image_0_url": "https://example.org/0",
    "image_1_uid": "one",
    "jpg_0": DARK,
    "jpg_1": LIGHT,
    "label_0": 0.0,
    "label_1": 1.0,
    "model_0": "m",
    "ranking_id": 7,
    "user_id": 3,
}


def parquet(path: Path, rows: list[dict]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def jsonl(path: Path, rows: list) -> Path:
    plain = [
        {k: text(v) if isinstance(v, bytes) else v for k, v in row.items()} if isinstance(row, dict) else row
        for row in rows
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in plain))
    return path


def load(path: Path, **options) -> Read:
    return read_prompts(path, quarantine=path.with_name("refused.jsonl"), **options)


def refusals(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.with_name("refused.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("form", ["bytes", "dicts", "base64", "data url"])
def test_pick_a_pic_is_the_same_prompt_however_its_pictures_are_written(tmp_path, form):
    if form == "base64":
        path = jsonl(tmp_path / "data.jsonl", [PICK])
    elif form == "data url":
        path = jsonl(tmp_path / "data.jsonl", [PICK | {"jpg_0": f"data:image/jpeg;base64,{text(DARK)}"}])
    else:
        held = {"jpg_0": {"bytes": DARK, "path": "a.jpg"}, "jpg_1": {"bytes": LIGHT, "path": None}}
        path = parquet(tmp_path / "data.parquet", [PICK | (held if form == "dicts" else {})])
    (prompt,) = load(path).prompts
    assert prompt.messages[0].content == "a red bicycle"
    assert [base64.b64decode(one.image) for one in prompt.given] == [DARK, LIGHT], "a JPEG stays as it came"
    assert [one.score for one in prompt.given] == [0.0, 1.0]
    assert [one.text for one in prompt.given] == ["", ""]


def test_ties_are_refused_unless_they_are_to_be_kept(tmp_path):
    tie = PICK | {"label_0": 0.5, "label_1": 0.5, "best_image_uid": "tie"}
    path = parquet(tmp_path / "data.parquet", [PICK, tie, tie | {"caption": "a cat"}])
    read = load(path)
    assert (len(read.prompts), read.by_reason) == (1, Counter({"tie": 2}))
    assert {note["line"] for note in refusals(path)} == {2, 3}
    kept = load(path, ties="keep")
    assert (len(kept.prompts), kept.refused) == (3, 0)
    assert [one.score for one in kept.prompts[1].given] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"has_label": False}, "has_label", "no label"),
        ({"has_label": False, "label_0": None, "label_1": None}, "has_label", "no label"),
        ({"label_0": None}, "label_0", "missing"),
        ({"label_1": 2.0}, "label_1", "not between 0 and 1"),
        ({"label_0": 1.0, "label_1": 0.0}, "best_image_uid", "names the image that the labels rate lower"),
        ({"are_different": False}, "jpg_1", "the two images are the same"),
        ({"jpg_1": DARK}, "jpg_1", "the two images are the same"),
        ({"jpg_1": LIGHT[:100]}, "jpg_1", "not a picture that can be opened"),
        ({"jpg_0": b"no picture"}, "jpg_0", "not a picture that can be opened"),
        ({"jpg_0": "%%%"}, "jpg_0", "neither bytes nor base64"),
        ({"jpg_0": 3}, "jpg_0", "wrong type"),
        ({"jpg_0": {"path": "a.jpg", "bytes": None}}, "jpg_0", "missing"),
        ({"caption": " "}, "caption", "empty text"),
    ],
)
def test_a_row_of_pick_a_pic_that_cannot_be_used_is_named(tmp_path, change, field, reason):
    path = jsonl(tmp_path / "data.jsonl", [PICK, PICK | change])
    assert load(path).by_reason == Counter({reason: 1})
    (note,) = refusals(path)
    assert (note["line"], note["field"], note["file"]) == (2, field, str(path))


def test_captions_with_images_are_demonstrations(tmp_path):
    path = parquet(tmp_path / "data.parquet", [{"caption": "a cat", "image": {"bytes": DARK, "path": "c.jpg"}}])
    (prompt,) = load(path).prompts
    assert prompt.given[0].image == text(DARK)
    assert prompt.given[0].score is None
    path = jsonl(tmp_path / "data.jsonl", [{"text": "a cat", "image": DARK}])
    assert load(path, columns={"caption": "text"}).prompts[0].given == prompt.given
    with pytest.raises(UserError, match="image: not supported"):
        load(jsonl(tmp_path / "data.jsonl", [{"prompt": "What is this?", "image": DARK}]))


def test_image_preferences_have_their_scores_or_one_and_nought(tmp_path):
    row = {"prompt": "a cat", "chosen_image": LIGHT, "rejected_image": DARK}
    plain, scored = load(
        jsonl(tmp_path / "data.jsonl", [row, row | {"prompt": "a dog", "score_chosen": 8, "score_rejected": "2.5"}])
    ).prompts
    assert [(one.image, one.score) for one in plain.given] == [(text(LIGHT), 1), (text(DARK), 0)]
    assert [one.score for one in scored.given] == [8, 2.5]
    read = load(jsonl(tmp_path / "data.jsonl", [row, row | {"rejected_image": LIGHT}, row | {"score_chosen": 1}]))
    assert read.by_reason == Counter({"chosen and rejected are the same": 1, "missing": 1})


@pytest.mark.parametrize(
    ("form", "kept"), [("PNG", True), ("JPEG", True), ("WEBP", True), ("BMP", False), ("GIF", False)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_written_anew_only_in_a_format_that_records_do_not_hold(form, kept, channels):
    raw = file(0.25, form, channels=channels)
    found = drawn(raw, "image")
    assert (found == text(raw)) is kept
    assert float(decode(found).mean()) == pytest.approx(0.25, abs=0.02)
    assert Image.open(io.BytesIO(base64.b64decode(found))).format in {"PNG", "JPEG", "WEBP"}


# ---- whatever comes: a prompt, a counted refusal or a UserError, never another exception

junk = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
)
cut = st.tuples(st.integers(0, len(LIGHT)), st.binary(max_size=4), st.integers(0, len(LIGHT))).map(
    lambda how: (LIGHT[: how[2]] + how[1] + LIGHT[how[2] + len(how[1]) :])[: how[0]]
)
pictures = st.sampled_from([DARK, LIGHT, file(0.1, "BMP"), file(0.1, "GIF"), b""]) | cut
written = pictures | pictures.map(lambda raw: {"bytes": text(raw)}) | pictures.map(text) | junk
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = {
    "captioned": ({"caption": "a cat", "image": LIGHT}, ("image",)),
    "image_preference": ({"prompt": "a cat", "chosen_image": LIGHT, "rejected_image": DARK}, ("chosen_image",)),
    "pick_a_pic": (PICK, ("jpg_0", "jpg_1")),
}


@pytest.mark.parametrize("shape", SHAPES)
@quick
@given(data=st.data())
def test_any_value_in_any_column(tmp_path, shape, data):
    good, images = SHAPES[shape]
    others = st.fixed_dictionaries({}, optional=dict.fromkeys(sorted(set(good) - set(images)), junk))
    drawings = st.fixed_dictionaries({}, optional=dict.fromkeys(images, written))
    rows = data.draw(st.lists(st.tuples(others, drawings).map(lambda two: good | two[0] | two[1]), max_size=3))
    path = jsonl(tmp_path / "data.jsonl", [good, *rows])
    read = load(path, shape=shape, ties=data.draw(st.sampled_from(["drop", "keep"])))
    assert len(read.prompts) + read.refused == len(rows) + 1
    assert read.refused == read.by_reason.total() == len(refusals(path))
    for prompt in read.prompts:
        assert Prompt.model_validate_json(prompt.model_dump_json()) == prompt
        assert all(decode(one.image).shape == (3, 8, 8) for one in prompt.given)


@quick
@given(raw=cut)
def test_damaged_bytes_are_a_picture_or_a_fault(raw):
    with contextlib.suppress(Fault):
        assert decode(drawn(raw, "image")).isfinite().all()
