"""The flows from their command lines, against a real Prefect server and a small real DVC project."""

import json
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import dvc, recipes
from tests.flows import project


def flow(folder: Path, name: str, *arguments: str, **env: str):
    return project.run(folder, sys.executable, "-m", f"flows.{name}", *arguments, **env)


def artifacts(server: str, flow_run: str) -> dict[str, str]:
    """Data of the artifacts of a flow run, by key."""
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run])), limit=50
        )
    return {artifact.key: artifact.data for artifact in found}


@pytest.mark.slow
def test_the_workspace_is_reproduced_with_nothing_started(folder: Path) -> None:
    done = flow(folder, "align")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "win_rate\t0.51\nrounds\t1\n"
    assert [row[0] for row in project.log(folder)] == ["prepare", "optimize", "selfplay", "evaluate"]
    assert dvc.status(folder) == {}
    assert (folder / ".prefect").is_dir(), "the temporary database belongs in the project"
    assert not (folder / "home").exists(), "nothing is written to the user's home"


@pytest.mark.slow
def test_an_experiment_has_a_workspace_of_its_own(folder: Path, server: str) -> None:
    """Uncommitted edits travel along, the folder stays as it was, and the same setting is not run twice."""
    (folder / "steps.py").write_text(project.STEPS_PY.replace("0.5 +", "0.4 +"))
    before = (folder / "params.yaml").read_text()
    asked = ("--seed", "3", "--set", "optimize.objective.beta=0.5")
    done = flow(folder, "align", *asked, PREFECT_API_URL=server)
    assert done.returncode == 0, done.stderr
    assert "win_rate\t0.48" in done.stdout
    assert (folder / "params.yaml").read_text() == before
    assert not (folder / "data").exists()
    [name] = dvc.experiments(folder)
    assert name.startswith("params-s3-")
    log = project.log(folder)
    assert {row[-2] for row in log} == {name}
    shown = artifacts(server, log[0][-1])
    assert shown["progress"] == 100.0
    assert "| win_rate | 0.48 |" in shown["metrics"]
    assert "| optimize |" in shown["metrics"]
    assert "report.html" in shown["report"]
    assert json.loads((folder / "experiments" / name / "metrics.json").read_text())["win_rate"] == pytest.approx(0.48)
    assert list((folder / ".scratch" / "workspaces").iterdir()) == []

    again = flow(folder, "align", *asked, PREFECT_API_URL=server)
    assert again.stdout == done.stdout
    assert len(project.log(folder)) == len(log)
    applied = project.run(folder, sys.executable, "-m", "dvc", "exp", "apply", name, **project.AUTHOR)
    assert applied.returncode == 0, applied.stderr
    assert recipes.read(folder / "params.yaml")["run"]["seed"] == 3
    assert (folder / "data" / "evaluate" / "report.html").exists()


def test_a_mistake_is_one_line_and_not_retried(folder: Path, server: str) -> None:
    done = flow(folder, "align", "--set", "optimize.objective.beta=-1", "--retries", "2", PREFECT_API_URL=server)
    assert done.returncode == 2
    assert "params.yaml optimize.objective.beta: -1 is negative; use beta > 0" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert [row[0] for row in project.log(folder)] == ["prepare", "optimize"]
    unknown = flow(folder, "align", "--recipe", "nothing", PREFECT_API_URL=server)
    assert unknown.returncode == 2
    assert "no recipe is called 'nothing'" in unknown.stderr
    assert "Traceback" not in unknown.stderr


@pytest.mark.slow
def test_a_failure_is_retried_in_the_same_workspace(folder: Path, server: str) -> None:
    """The stage fails the first time that it is asked, and goes on from what it left in scratch."""
    once = (
        "if stage == 'optimize' and not Path('.scratch/half').exists():\n"
        "    Path('.scratch').mkdir(exist_ok=True); Path('.scratch/half').touch(); raise SystemExit(1)\n"
    )
    (folder / "steps.py").write_text(project.STEPS_PY + once)
    done = flow(folder, "align", "--seed", "1", "--retries", "1", PREFECT_API_URL=server)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in project.log(folder)] == ["prepare", "optimize", "optimize", "selfplay", "evaluate"]


@pytest.mark.slow
def test_rounds_end_when_the_gate_says_so(folder: Path, server: str) -> None:
    """The small project's gate stops after r2; with one round allowed, the limit stops it."""
    done = flow(folder, "rounds", "--max-rounds", "5", PREFECT_API_URL=server)
    assert done.returncode == 0, done.stderr
    assert "rounds\t2" in done.stdout
    ran = [" ".join(row[:-3]) for row in project.log(folder)]
    assert ran == ["prepare", "optimize", "selfplay r1", "selfplay r2", "evaluate"]
    done = flow(folder, "rounds", "--max-rounds", "1", PREFECT_API_URL=server)
    assert "rounds\t1" in done.stdout


@pytest.mark.slow
def test_a_sweep_compares_and_takes_up_where_it_stopped(folder: Path, server: str) -> None:
    from mlflow import MlflowClient

    names = ["dpo", "simpo"]  # recipes that name none but this small project's nodes
    store = f"sqlite:///{folder}/mlflow.db"
    common = ("--set", "optimize.objective={name: dpo, beta: 0.2}", "--name", "both")
    first = flow(folder, "sweep", "--recipes", names[0], *common, PREFECT_API_URL=server)
    assert first.returncode == 0, first.stderr
    ran = len(project.log(folder))
    done = flow(folder, "sweep", "--recipes", ",".join(names), "--seeds", "2", *common, PREFECT_API_URL=server)
    assert done.returncode == 0, done.stderr
    assert len(dvc.experiments(folder)) == 4
    assert not any(row[-2] == project.log(folder)[0][-2] for row in project.log(folder)[ran:]), "it ran twice"
    assert all(name in done.stdout for name in names)
    assert {"comparison.md", "comparison.png"} <= {file.name for file in (folder / "experiments" / "both").iterdir()}
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("prefloop").experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4
    assert {(run.data.params["sweep.recipe"], run.data.params["sweep.seed"]) for run in children} == {
        (name, seed) for name in names for seed in ("0", "1")
    }
    assert all("win_rate" in run.data.metrics for run in children)
    assert "comparison.md" in [file.path for file in client.list_artifacts(parent.info.run_id)]
