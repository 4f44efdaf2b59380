"""Preferences that people made: the graph trains on them without generating, through the same stages."""

import json
from pathlib import Path

import pytest

from flows import recipes
from tests.pipeline.conftest import ROOT, copy_code, executed

DATA = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-test.jsonl.gz"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.exists(), reason="the shared HH-RLHF file is not here"),
]


def test_given_pairs_are_learnt_without_generating(tmp_path: Path):
    folder = tmp_path / "project"
    copy_code(folder)
    params = recipes.apply(recipes.read(folder / "params.yaml"), recipes.load("human"))
    smaller = {
        "prepare": {"prompts": str(DATA), "train": 48, "test": 16, "max_chars": 400},
        "generate": {"prompts": 48},
        "optimize": {"num_train_epochs": 6, "learning_rate": 0.02, "per_device_train_batch_size": 8},
    }
    recipes.write(folder / "params.yaml", recipes.apply(params, smaller))
    executed(folder)
    pairs = [json.loads(line) for line in (folder / "data/label/preferences.jsonl").read_text().splitlines()]
    assert len(pairs) == 48
    assert all(pair["chosen"]["score"] == 1.0 and pair["rejected"]["score"] == 0.0 for pair in pairs)
    curve = [json.loads(line) for line in (folder / "data/optimize/metrics.jsonl").read_text().splitlines()]
    assert curve[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert curve[-1]["rewards/accuracies"] > 0.8, "training pairs were not learnt"
    metrics = json.loads((folder / "metrics/evaluate.json").read_text())
    assert 0 <= metrics["ranking_accuracy/reward_accuracy"] <= 1
    assert "win_rate" not in metrics, "nobody judged the policy's own answers"
