"""Published prompt files through the real stages of the image family, on a UNet that knows few of their words."""

import json
from pathlib import Path

import pytest

from flows import recipes
from stages import images, records
from stages.evaluate.geneval import metadata
from stages.records import Candidate, Pair, Prompt, Single
from tests.pipeline.conftest import execute

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
STAGES = ("prepare", "generate", "label", "reward", "sft", "reference", "optimize", "evaluate")
OVER = {  # nobody shows what the captions ask for: the first policy learns from its own best images
    "prepare": {"train": 24, "test": 6},
    "generate": {"policy": "data/prepare/model", "prompts": 6, "candidates": 2},
    "sft": {"demonstrations": "data/label/demonstrations.jsonl", "num_train_epochs": 1},
    "optimize": {"num_train_epochs": 1},
    "reference": {"draws": 1},
    "evaluate": {"base": "data/prepare/model", "policy": "data/optimize"},
}
KINDS = {
    "geneval-prompts.jsonl": {"single_object", "two_object", "counting", "colors", "position", "color_attr"},
    "parti-prompts.tsv": {"Abstract", "Animals", "Arts", "People", "World Knowledge", "Outdoor Scenes", "Vehicles"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_published_file_of_prompts_runs_through_the_stages(name, tmp_path, monkeypatch):
    if not (DATA / name).exists():
        pytest.skip(f"shared/data/{name} is not beside the repository")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    params = recipes.read(ROOT / "params.yaml")
    for overlay in (recipes.load("tiny_image"), OVER, {"prepare": {"prompts": str(DATA / name)}}):
        params = recipes.apply(params, overlay)
    recipes.write(tmp_path / "params.yaml", params)
    execute("parts", *STAGES)

    train, test = (records.read(Path(f"data/prepare/{half}.jsonl"), Prompt) for half in ("train", "test"))
    assert (len(train), len(test)) == (24, 6)
    assert not {prompt.messages for prompt in train} & {prompt.messages for prompt in test}
    assert len({prompt.kind for prompt in train} & KINDS[name]) > 2
    drawn = records.read(Path("data/label/candidates.jsonl"), Candidate)
    assert [c.prompt for c in drawn] == [prompt.id for prompt in train[:6] for _ in range(2)]
    assert {images.decode(c.image).shape for c in drawn} == {(1, 8, 8)}
    for pair in records.read(Path("data/label/preferences.jsonl"), Pair):
        asked = next(prompt for prompt in train if pair.id.startswith(f"{prompt.id}/"))
        assert pair.messages == asked.messages
    assert len(records.read(Path("data/label/demonstrations.jsonl"), Single)) == 6
    numbers = json.loads(Path("metrics/evaluate.json").read_text())
    assert {"win_rate", "independent_win_rate", "surrogate_kl"} <= numbers.keys()
    told = json.loads(Path("data/evaluate/headline.json").read_text())
    assert told
    if "geneval" in name:
        published = [json.loads(line) for line in (DATA / name).read_text().splitlines()]
        assert all(metadata(prompt) in published for prompt in test)
