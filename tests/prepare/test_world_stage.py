"""The prepare stage on the embedded worlds: prompts, demonstrations and pipelines that fit them."""

import json
from pathlib import Path

import pytest

from stages import images, records
from stages.entry import Job
from stages.errors import UserError
from stages.journal import Journal
from stages.policies.image import Policy
from stages.policies.image import Settings as ImageSettings
from stages.prepare import run as prepare
from stages.records import Prompt, Single

GIVEN = {"digits": ("tiny-unet", 1, (1, 8, 8)), "scenes": ("scenes-unet", 4, (3, 32, 32))}


def stage(folder: Path, seed: int = 0, **node) -> tuple[Path, dict[str, float]]:
    """Run the stage in a folder; returns what it wrote and its summary."""
    settings = {"model": "tiny-unet", "encoder": "tiny-encoder", "train": 20, "test": 10, **node}
    config = prepare.Settings.model_validate({"run": {"family": "image", "seed": seed}, "prepare": settings})
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    with Journal("prepare", scratch / "journal", {}, {}, root=scratch / "outbox") as journal:
        return out, prepare.run(Job(config, {}, scratch, out, journal))


@pytest.fixture(autouse=True)
def no_mlflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    Path("params.yaml").write_text("run: {seed: 0}\n")


@pytest.mark.parametrize("world", GIVEN)
def test_a_world_becomes_prompts_demonstrations_and_a_model_of_its_size(tmp_path, world):
    model, patch, shape = GIVEN[world]
    out, summary = stage(tmp_path, prompts=world, model=model)
    train, test = (records.read(out / f"{part}.jsonl", Prompt) for part in ("train", "test"))
    shown = records.read(out / "demonstrations.jsonl", Single)
    assert summary == {"prompts/train": 20, "prompts/test": 10, "prompts/refused": 0}
    assert (len(train), len(test)) == (20, 10)
    assert (out / "quarantine.jsonl").read_text() == ""
    assert [one.id for one in shown] == [prompt.id for prompt in train]
    assert all(s.messages == p.messages and s.completion == p.given[0] for s, p in zip(shown, train, strict=True))
    assert {images.decode(one.completion.image).shape for one in shown} == {shape}
    policy = Policy.load(out / "model", ImageSettings(patch=patch, steps=1))
    drawn = policy.sample(train[:1], 1, seed=0)
    assert images.decode(drawn[0].image).shape == shape
    assert (out / "encoder/config.json").is_file()


def test_every_caption_is_of_words_that_the_model_knows(tmp_path):
    """What the tokenizer does not know, the denoiser cannot tell apart."""
    for world, (model, patch, _) in GIVEN.items():
        out, _ = stage(tmp_path / world, prompts=world, model=model, train=200, test=100)
        tokenizer = Policy.load(out / "model", ImageSettings(patch=patch)).home.pipe.tokenizer
        for part in ("train", "test"):
            for prompt in records.read(out / f"{part}.jsonl", Prompt):
                said = tokenizer(prompt.messages[-1].content)["input_ids"]
                assert tokenizer.unk_token_id not in said, prompt.messages[-1].content
                assert len(said) <= tokenizer.model_max_length


def test_the_seed_decides_the_prompts_and_nothing_else_does(tmp_path):
    one, same, other = (
        stage(tmp_path / name, seed, prompts="digits")[0] for name, seed in [("a", 0), ("b", 0), ("c", 1)]
    )
    for name in ("train.jsonl", "test.jsonl", "demonstrations.jsonl"):
        assert (one / name).read_bytes() == (same / name).read_bytes()
        assert (one / name).read_bytes() != (other / name).read_bytes()
    index = json.loads((one / "model/model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (one / "model" / weights).read_bytes() == (same / "model" / weights).read_bytes()


def test_too_many_digits_are_refused_before_a_model_is_made(tmp_path):
    with pytest.raises(UserError, match="params.yaml prepare.test: 298 digits asked for, 297 exist"):
        stage(tmp_path, prompts="digits", test=298)
    assert not (tmp_path / "out/model").exists()
