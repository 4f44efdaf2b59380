"""Other choices than the default's, through the real stages on tiny policies: every objective, best-of-n, singles."""

import importlib
import json
import math

import pytest

from flows import recipes
from stages import entry
from tests.pipeline.conftest import command

pytestmark = pytest.mark.slow
OBJECTIVES = ("ipo", "kto", "simpo", "cpo", "slic", "orpo_odds", "sppo")


def choose(folder, overlay) -> None:
    """Lay an overlay over the workspace's params.yaml."""
    recipes.write(folder / "params.yaml", recipes.apply(recipes.read(folder / "params.yaml"), overlay))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_recipe_trains_a_policy_of_its_own(workspace, finished, monkeypatch, name):
    choose(workspace, recipes.load(name))
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    entry.execute(importlib.import_module("stages.optimize.run").STAGE)
    rows = [json.loads(line) for line in (workspace / "data/optimize/metrics.jsonl").read_text().splitlines()]
    default = (finished / "data/optimize/metrics.jsonl").read_text().splitlines()
    wanted = len(default) if name != "kto" else 2 * len(default)  # a pair serves as two single answers
    assert len(rows) == wanted
    assert all(math.isfinite(value) for row in rows for value in row.values())
    weights = "data/optimize/adapter_model.safetensors"
    assert (workspace / weights).read_bytes() != (finished / weights).read_bytes()
    assert json.loads((workspace / "data/optimize/settings.json").read_text())["optimize"]["objective"]["name"] == name


def test_best_of_n_keeps_the_best_by_its_panel(workspace):
    sampler = {"name": "best_of_n", "n": 3, "max_new_tokens": 24}
    choose(workspace, {"generate": {"sampler": sampler, "panel": {"rewards": {"length": {"low": 1, "high": 3}}}}})
    done = command(workspace, "dvc", "repro", "generate")
    assert done.returncode == 0, done.stderr[-2000:]
    held = json.loads((workspace / "data/parts/generate.json").read_text())
    assert "stages/label/rewards/length.py" in held
    rows = (workspace / "data/generate/candidates.jsonl").read_text().splitlines()
    assert len(rows) == 24 * 3


def test_single_labels_train_kto(workspace):
    choose(workspace, {"label": {"pairing": {"name": "binary", "threshold": 0.5}}})
    choose(workspace, recipes.load("kto"))
    choose(workspace, {"selfplay": {"rounds": {"r1": None, "r2": None}}})
    done = command(workspace, "dvc", "repro", "optimize")
    assert done.returncode == 0, done.stderr[-2000:]
    row = json.loads((workspace / "data/label/preferences.jsonl").read_text().splitlines()[0])
    assert isinstance(row["label"], bool)


def test_the_front_of_two_rewards_is_measured_and_drawn(workspace, monkeypatch):
    choose(workspace, {"evaluate": {"front": ["relevance", "length"], "metrics": {"hypervolume": {}}}})
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{workspace / 'mlflow.db'}")
    entry.execute(importlib.import_module("stages.evaluate.run").STAGE)
    told = json.loads((workspace / "metrics/evaluate.json").read_text())
    sides = {
        side: told[f"score/relevance{end}"] * told[f"score/length{end}"]
        for side, end in (("own", ""), ("base", "/base"))
    }
    assert told["hypervolume"] == pytest.approx(sides["own"])
    assert told["hypervolume/base"] == pytest.approx(sides["base"])
    assert "The front of two rewards" in (workspace / "data/evaluate/report.html").read_text()
