"""A user's mistake is one line: what, where, what to do; exit code 2, no traceback, nothing lost."""

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.pipeline.conftest import command, execute

pytestmark = pytest.mark.slow


def edit(folder: Path, old: str, new: str) -> None:
    """Change params.yaml; the old text must be there."""
    file = folder / "params.yaml"
    text = file.read_text()
    assert re.search(old, text), old
    file.write_text(re.sub(old, new, text, count=1))


def refused(folder: Path, *words: str, **more: str) -> str:
    """Run a stage that must fail as a user's mistake; returns its one line."""
    done = command(folder, *words, **more)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, done.stderr
    return lines[0]


PARAMS = [
    ("optimize", "gradient_accumulation_steps: 1", "gradient_accumulation: 1", "did you mean"),
    ("optimize", "name: dpo", "name: dop", "did you mean 'dpo'?"),
    ("optimize", "beta: 0.1", "beta: -1", "greater than 0"),
    ("optimize", "beta: 0.1", "betta: 0.1", "did you mean 'beta'?"),
    ("optimize", "name: dpo\n(\\s+)beta: 0.1", "name: bradley_terri", "did you mean 'bradley_terry'?"),
    ("generate", "candidates: 3", "candidates: none", "candidates"),
    ("generate", "seed: 0", "seed: 0\n  sed: 1", "did you mean 'seed'?"),
    ("generate", "device: auto", "device: cuda", "use auto or cpu"),
    ("label", "completeness:", "completness:", "did you mean 'completeness'?"),
    ("label", "name: best_worst", "name: best_best", "did you mean 'best_worst'?"),
    ("reward", "name: bradley_terry", "name: kto", "does not learn from scores alone; choose 'bradley_terry'"),
    ("reward", "name: bradley_terry", "name: regression", "name rewards of label"),
    ("sft", "name: nll", "name: spo_degree", "sft has demonstrations"),
    ("evaluate", "chrf:", "relevance:", "made labels too"),
    ("evaluate", "kl_sampler:\n(\\s+)name: temperature", "kl_sampler:\n\\1name: best_of_n", "judged by"),
]


@pytest.fixture
def here(inside: Path, refusal: Callable[[Path, str], str]) -> Callable[[str], str]:
    """Run a stage that must fail, without its imports anew; returns its one line."""
    return partial(refusal, inside)


@pytest.mark.parametrize(
    ("stage", "old", "new", "says"), PARAMS, ids=[f"{stage}-{new.split(':')[0]}" for stage, _, new, _ in PARAMS]
)
def test_params(workspace, here, stage, old, new, says):
    edit(workspace, old, new)
    before = sorted((workspace / "data").rglob("*"))
    line = here(stage)
    assert says in line
    assert "params.yaml" in line
    assert sorted((workspace / "data").rglob("*")) == before, "a refused run touched a result"


def test_params_name_the_line(workspace, here):
    edit(workspace, "seed: 0", "seed: -3")
    number = (workspace / "params.yaml").read_text().splitlines().index("  seed: -3") + 1
    assert f"params.yaml:{number} run.seed" in here("generate")


def test_a_model_that_is_nowhere(workspace):
    edit(workspace, "model: tiny", "model: no-such/model")
    assert "local folder" in refused(workspace, "stages.prepare", HF_HUB_OFFLINE="1")


def test_an_unknown_name_in_a_command(workspace):
    edit(workspace, "name: dpo", "name: dop")
    assert "did you mean 'dpo'?" in refused(workspace, "stages.optimize")


def test_params_that_are_not_yaml(workspace, here):
    (workspace / "params.yaml").write_text("run: [1, 2\nprepare: {")
    assert "params.yaml:" in here("prepare")


def test_single_labels_for_an_objective_on_pairs(workspace, here):
    edit(workspace, "name: best_worst", "name: binary")
    execute("label", "reference")
    assert "takes pairs, a label is a single" in here("optimize")


def test_a_cache_of_another_reference(workspace, here):
    edit(workspace, "max_length: 512", "max_length: 256")
    execute("reference")
    edit(workspace, "max_length: 256", "max_length: 512")
    assert "another policy max_length" in here("optimize")


def test_a_corrupt_model_file(workspace, here):
    file = workspace / "data/sft/adapter_model.safetensors"
    content = file.read_bytes()[:100]
    file.unlink()  # it may be a link into DVC's cache
    file.write_bytes(content)
    assert "data/sft" in here("reference")


def test_a_pickled_model_file(workspace, here):
    folder = workspace / "data/prepare/model"
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "never loaded" in here("generate")


def test_a_missing_input(workspace, here):
    shutil.rmtree(workspace / "data/generate")
    assert "dvc repro" in here("label")


def test_a_broken_row_names_file_line_and_field(workspace, here):
    file = workspace / "data/generate/candidates.jsonl"
    lines = file.read_text().splitlines()
    row = json.loads(lines[4])
    row["finished"] = "perhaps"
    lines[4] = json.dumps(row)
    file.unlink()
    file.write_text("\n".join(lines))
    line = here("label")
    assert "candidates.jsonl:5" in line
    assert "finished" in line


def test_faulty_rows_of_a_users_file_are_quarantined_and_counted(workspace):
    good = [json.dumps({"prompt": f"Say the number {i}."}) for i in range(20)]
    bad = [
        '{"prompt": ',
        '{"prompt": ""}',
        '{"promt": "x"}',
        '{"prompt": 3}',
        json.dumps({"prompt": "y" * 9000}),
        good[0],
    ]
    (workspace / "mine.jsonl").write_text("\n".join(good + bad) + "\n")
    edit(workspace, "prompts: builtin", "prompts: mine.jsonl")
    edit(workspace, "train: 40", "train: 12")
    done = command(workspace, "stages.prepare")
    assert done.returncode == 0, done.stderr
    assert "6 rows refused" in done.stdout
    held = [json.loads(line) for line in (workspace / "data/prepare/quarantine.jsonl").read_text().splitlines()]
    assert [row["line"] for row in held] == [21, 22, 23, 24, 25, 26]
    assert json.loads((workspace / "metrics/prepare.json").read_text())["prompts/refused"] == 6


def test_a_file_with_too_few_prompts(workspace, here):
    (workspace / "mine.jsonl").write_text(json.dumps({"prompt": "Say one."}) + "\n")
    edit(workspace, "prompts: builtin", "prompts: mine.jsonl")
    assert "lower prepare.train" in here("prepare")


def test_an_unreachable_mlflow_delays_the_log_and_not_the_training(workspace, finished):
    shutil.rmtree(workspace / "data/optimize")
    done = command(workspace, "stages.optimize", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("MLflow at") == 1
    same = "adapter_model.safetensors"
    assert (workspace / "data/optimize" / same).read_bytes() == (finished / "data/optimize" / same).read_bytes()
    delivered = command(workspace, "stages.journal")
    assert delivered.returncode == 0, delivered.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk(workspace):
    shutil.rmtree(workspace / "metrics")
    (workspace / "metrics").mkdir()
    (workspace / "metrics/label.json.part").symlink_to("/dev/full")
    line = refused(workspace, "stages.label")
    assert "disk is full" in line
