"""An experiment runs what it was planned with."""

import subprocess
from pathlib import Path

import pytest

from flows import experiments, recipes
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
