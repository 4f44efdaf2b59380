"""The graph as a whole: what it leaves, what goes stale, and that dvc.yaml names what the stages import."""

import ast
import csv
import json
import os
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.pipeline.conftest import ROOT, command

pytestmark = pytest.mark.slow
FAMILIES = "stages/policies/family.py"
STAGES = ["prepare", "generate", "label", "reward", "sft", "reference", "optimize", "selfplay", "evaluate"]


def test_one_process_has_the_tests_of_this_folder(request) -> None:
    """Where tests run in several, so that the graph is made once."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@pipeline")


def stale(folder: Path) -> set[str]:
    """Names of the stages that `dvc status` finds changed."""
    done = command(folder, "dvc", "status", "--json")
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_every_stage_leaves_its_output_settings_and_metrics(finished):
    for stage in [*STAGES[:-2], "selfplay/r1", "selfplay/r2", "evaluate"]:
        assert (finished / "data" / stage / "settings.json").is_file(), stage
        metrics = json.loads((finished / "metrics" / f"{stage.replace('/', '-')}.json").read_text())
        assert metrics
        assert all(isinstance(value, float | int) for value in metrics.values())
    assert not list((finished / ".scratch").glob("*/*/out")), "finished work stays in scratch"


def test_policies_leave_as_adapters_in_safetensors(finished):
    for stage in ("sft", "optimize", "selfplay/r1", "selfplay/r2"):
        folder = finished / "data" / stage
        assert (folder / "adapter_model.safetensors").is_file()
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "data/prepare/model"
    assert not [f for f in (finished / "data").rglob("*") if f.suffix in {".bin", ".pt", ".pkl"}]


def test_the_first_step_starts_at_the_reference(finished):
    first = json.loads((finished / "data/optimize/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-3)


def test_nothing_to_do_does_nothing(finished):
    assert stale(finished) == set()
    done = command(finished, "dvc", "repro")
    assert done.returncode == 0
    assert "Running stage" not in done.stdout


def test_dvc_shows_metrics_and_plots(finished, tmp_path):
    shown = json.loads(command(finished, "dvc", "metrics", "show", "--json").stdout)
    assert "win_rate" in shown[""]["data"]["metrics/evaluate.json"]["data"]
    done = command(finished, "dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "plots" / "index.html").read_text()
    for name in ("optimize loss", "optimize margins", "frontier"):
        assert name in page
    header = next(csv.reader((finished / "data/optimize/curves.csv").open()))
    assert {"step", "loss", "rewards/margins", "rewards/accuracies", "logps/chosen"} <= set(header)


def test_an_unused_part_makes_nothing_stale(workspace):
    for file in (
        "stages/optimize/objectives/kto.py",
        "stages/generate/samplers/greedy.py",
        "stages/label/pairings/binary.py",
    ):
        (workspace / file).write_text((workspace / file).read_text() + "\n# edited\n")
    assert stale(workspace) == {"parts"}
    assert command(workspace, "dvc", "repro", "parts").returncode == 0
    assert stale(workspace) == set()


def test_the_chosen_part_makes_its_stage_stale(workspace):
    file = workspace / "stages/optimize/objectives/dpo.py"
    file.write_text(file.read_text() + "\n# edited\n")
    assert stale(workspace) == {"parts", "optimize", "selfplay@r1", "selfplay@r2"}


def test_of_a_list_of_parts_only_the_chosen_ones_count(workspace):
    unused = workspace / "stages/label/rewards/given.py"
    unused.write_text(unused.read_text() + "\n# edited\n")
    assert stale(workspace) == {"parts"}
    assert command(workspace, "dvc", "repro", "parts").returncode == 0
    assert stale(workspace) == set()
    chosen = workspace / "stages/label/rewards/sentiment.py"
    chosen.write_text(chosen.read_text() + "\n# edited\n")
    assert command(workspace, "dvc", "repro", "parts").returncode == 0
    assert stale(workspace) == {"label", "evaluate"}


def test_another_objective_leaves_what_comes_before_it_fresh(workspace):
    file = workspace / "params.yaml"
    text = file.read_text()
    changed = re.sub(r"name: dpo\n(\s+)beta: 0.1", r"name: simpo\n\1beta: 2.0", text)
    assert changed != text
    file.write_text(changed)
    assert command(workspace, "dvc", "repro", "parts").returncode == 0  # reads the node, and finds the same lists
    assert stale(workspace) == {"optimize", "selfplay@r1", "selfplay@r2"}


def imports(start: str) -> set[str]:
    """Files of `stages` that a file imports, at any depth and anywhere in its code, itself included.

    For the families' packages stands the folder of the one that runs.
    """
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        file = ahead.pop()
        if file in seen:
            continue
        seen.add(file)
        if file == FAMILIES:  # finds its packages by name
            ahead += [f"stages/policies/{f.parent.name}/{f.name}" for f in (ROOT / "stages/policies").glob("*/*.py")]
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stages"):
                base = node.module.replace(".", "/")
                ahead += [
                    f for f in (f"{base}.py", *(f"{base}/{a.name}.py" for a in node.names)) if (ROOT / f).exists()
                ]
    if FAMILIES not in seen:
        return seen
    packages = {f for f in seen if f.startswith("stages/policies/") and f.count("/") == 3}
    return seen - packages | {"stages/policies/${run.family}"}


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_are_what_it_imports(stage):
    graph = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    deps = graph.get("do", graph)["deps"]
    code = {dep for dep in deps if dep.startswith("stages/") and dep.endswith(".py") and "${" not in dep}
    code |= {dep for dep in deps if dep == "stages/policies/${run.family}"}
    assert code == imports(f"stages/{stage}/run.py")


def test_no_stage_imports_another_and_none_imports_flows():
    for stage in STAGES:
        for file in imports(f"stages/{stage}/run.py"):
            owner = Path(file).parts[1]
            assert owner == stage or owner not in STAGES, f"{stage} imports {file}"
    for file in (ROOT / "stages").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (flows|prefect)\b", file.read_text(), re.M), file
