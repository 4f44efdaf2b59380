"""An experiment runs what it was planned with."""

import os
import subprocess
from pathlib import Path

import pytest

from flows import dvc, experiments, recipes
from tests.flows import project


@pytest.fixture(autouse=True)
def _environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in project.environment(folder).items():
        monkeypatch.setenv(key, value)


def test_edits_and_commits_after_the_plan_do_not_reach_it(folder: Path) -> None:
    steps = folder / "steps.py"
    planned_code = steps.read_text() + "# an edit that was there\n"
    steps.write_text(planned_code)
    plan = experiments.plan(folder, None, 3, [])
    again = experiments.plan(folder, None, 3, [])
    assert again.name == plan.name
    steps.write_text("raise SystemExit('edited meanwhile')")
    params = recipes.read(folder / "params.yaml")
    recipes.write(folder / "params.yaml", recipes.apply(params, {"optimize": {"learning_rate": 0.5}}))
    subprocess.run(["git", *project.USER, "commit", "--quiet", "--all", "-m", "meanwhile"], cwd=folder, check=True)
    workspace = experiments.enter(plan)
    assert (workspace / "steps.py").read_text() == planned_code
    assert recipes.read(workspace / "params.yaml") == plan.params
    assert plan.params["run"]["seed"] == 3
    assert plan.params["optimize"]["learning_rate"] == 5e-7
    assert experiments.plan(folder, None, 3, []).name != plan.name


def test_a_file_with_another_date_is_no_edit(folder: Path) -> None:
    """As after a copy of the whole folder."""
    os.utime(folder / "steps.py", (1, 1))
    assert experiments.plan(folder, None, None, []).edits == ""


def test_results_that_were_committed_elsewhere_cost_no_second_run(folder: Path) -> None:
    """The lock names results of another machine; those of this one are in the run-cache, and are taken from there."""
    dvc.repro(folder, "evaluate", single=False)
    lock = folder / "dvc.lock"
    (folder / "metrics/evaluate.json").unlink()
    held = recipes.read(lock)
    held["stages"]["prepare"]["outs"][0]["md5"] = "0" * 32 + ".dir"
    recipes.write(lock, held)
    subprocess.run(["git", "add", "-A"], cwd=folder, check=True)
    subprocess.run(
        ["git", *project.USER, "commit", "--quiet", "-m", "the lock of another machine"], cwd=folder, check=True
    )
    ran = len(project.log(folder))
    workspace = experiments.enter(experiments.plan(folder, None, None, []))
    dvc.forget_lost(workspace)
    assert "prepare" not in recipes.read(workspace / "dvc.lock")["stages"]
    assert "optimize" in recipes.read(workspace / "dvc.lock")["stages"]
    for stage in dvc.stages(workspace):
        dvc.repro(workspace, stage)
    assert len(project.log(folder)) == ran
    assert (workspace / "data/prepare/result").exists()
