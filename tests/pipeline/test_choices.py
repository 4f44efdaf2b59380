"""Other choices than the default's, through the real stages on tiny policies: every objective, best-of-n, singles."""

import json
import math

import pytest

from flows import recipes
from tests.pipeline.conftest import execute

pytestmark = pytest.mark.slow
OBJECTIVES = ("ipo", "kto", "simpo", "cpo", "slic", "orpo_odds", "sppo")


def choose(folder, overlay) -> None:
    """Lay an overlay over the workspace's params.yaml."""
    recipes.write(folder / "params.yaml", recipes.apply(recipes.read(folder / "params.yaml"), overlay))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_recipe_trains_a_policy_of_its_own(inside, finished, name):
    choose(inside, recipes.load(name))
    execute("optimize")
    rows = [json.loads(line) for line in (inside / "data/optimize/metrics.jsonl").read_text().splitlines()]
    default = (finished / "data/optimize/metrics.jsonl").read_text().splitlines()
    wanted = len(default) if name != "kto" else 2 * len(default)  # a pair serves as two single answers
    assert len(rows) == wanted
    assert all(math.isfinite(value) for row in rows for value in row.values())
    weights = "data/optimize/adapter_model.safetensors"
    assert (inside / weights).read_bytes() != (finished / weights).read_bytes()
    assert json.loads((inside / "data/optimize/settings.json").read_text())["optimize"]["objective"]["name"] == name


def test_best_of_n_keeps_the_best_by_its_panel(inside):
    sampler = {"name": "best_of_n", "n": 3, "max_new_tokens": 24}
    choose(inside, {"generate": {"sampler": sampler, "panel": {"rewards": {"length": {"low": 1, "high": 3}}}}})
    execute("parts", "generate")
    held = json.loads((inside / "data/parts/generate.json").read_text())
    assert "stages/label/rewards/length.py" in held
    rows = (inside / "data/generate/candidates.jsonl").read_text().splitlines()
    assert len(rows) == 24 * 3


def test_single_labels_train_kto(inside):
    choose(inside, {"label": {"pairing": {"name": "binary", "threshold": 0.5}}})
    choose(inside, recipes.load("kto"))
    execute("label", "reference", "optimize")
    row = json.loads((inside / "data/label/preferences.jsonl").read_text().splitlines()[0])
    assert isinstance(row["label"], bool)


def test_a_round_asks_a_reward_model_of_two_ratings(inside):
    """Each of its outputs follows the reward that it was held to, and scores in the round under that reward's name."""
    rated = {name: {"name": "rating", "output": name} for name in ("relevance", "length")}
    choose(inside, {"reward": {"objective": {"name": "regression"}, "outputs": ["relevance", "length"]}})
    choose(inside, {"selfplay": {"rewards": {**rated, "reward_model": None}}})
    execute("reward", "selfplay@r1")
    told = json.loads((inside / "metrics/reward.json").read_text())
    labelled = [json.loads(line) for line in (inside / "data/label/candidates.jsonl").read_text().splitlines()]
    assert told["answers"] == sum(bool(row.get("text", "").strip()) for row in labelled) > 24
    assert all(0 <= told[f"error/{name}"] <= 1 for name in rated)
    rows = [json.loads(line) for line in (inside / "data/selfplay/r1/candidates.jsonl").read_text().splitlines()]
    assert all(0 <= row["scores"][name] <= 1 for row in rows for name in rated)


def test_the_front_of_two_rewards_is_measured_and_drawn(inside):
    choose(inside, {"evaluate": {"front": ["relevance", "length"], "metrics": {"hypervolume": {}}}})
    execute("evaluate")
    told = json.loads((inside / "metrics/evaluate.json").read_text())
    sides = {
        side: told[f"score/relevance{end}"] * told[f"score/length{end}"]
        for side, end in (("own", ""), ("base", "/base"))
    }
    assert told["hypervolume"] == pytest.approx(sides["own"])
    assert told["hypervolume/base"] == pytest.approx(sides["base"])
    assert "The front of two rewards" in (inside / "data/evaluate/report.html").read_text()
