"""Grids and studies: cells, mistakes that are found before anything runs, and a study that is killed and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import check, experiments, grid, recipes, sweep
from flows.grid import Study
from stages.errors import UserError
from tests.flows import project
from tests.flows.conftest import started
from tests.flows.test_flows import flow

ROOT = recipes.HERE.parents[1]
STUDY = """\
recipes: {untrained: {evaluate: {policy: data/prepare}}, dpo: {}, cpo: {optimize: {learning_rate: 2e-7}}}
untrained: untrained
params:
  run: {family: image}
  optimize: {learning_rate: 1e-7}
  selfplay: {rounds: {r1: null}}
  evaluate: {policy: data/optimize}
axes:
  start: {sft: , bare: {prepare: {sleep: 0.0}}}
  pairs: {16: {run: {pairs: 16}}, 64: {run: {pairs: 64}}}
skills: {dialogue: [win_rate], length: [-rounds]}
"""
SMALL = """\
from pathlib import Path
from flows import grid, sweep
grid.HERE = Path("studies").resolve()
sweep.typer.run(sweep.main)
"""


def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str = STUDY) -> Study:
    """A study of a folder of its own, loaded."""
    (tmp_path / "studies").mkdir(exist_ok=True)
    (tmp_path / "studies/small.yaml").write_text(text)
    monkeypatch.setattr(grid, "HERE", tmp_path / "studies")
    return grid.load("small")


# ---------------------------------------------------------------------------------------------------- cells


def test_every_recipe_meets_every_level_and_the_untrained_one_every_start(tmp_path, monkeypatch) -> None:
    found = [str(cell) for cell in grid.cells(study(tmp_path, monkeypatch))]
    trained = [f"{o}, start {s}, pairs {n}" for o in ("dpo", "cpo") for s in ("sft", "bare") for n in (16, 64)]
    assert found == ["untrained, start sft, pairs –", "untrained, start bare, pairs –", *trained]


def test_axes_lie_over_the_recipes_own_overlay_and_that_over_the_params(tmp_path, monkeypatch) -> None:
    cells = {str(cell): cell.overlay for cell in grid.cells(study(tmp_path, monkeypatch))}
    assert cells["cpo, start bare, pairs 64"] == {
        "run": {"family": "image", "pairs": 64},
        "optimize": {"learning_rate": 2e-7},
        "selfplay": {"rounds": {"r1": None}},
        "evaluate": {"policy": "data/optimize"},
        "prepare": {"sleep": 0.0},
    }
    assert cells["dpo, start sft, pairs 16"]["optimize"] == {"learning_rate": 1e-7}
    assert cells["untrained, start sft, pairs –"]["evaluate"] == {"policy": "data/prepare"}
    assert cells["untrained, start sft, pairs –"]["run"]["pairs"] == 16


def test_the_values_of_an_axis_are_yaml() -> None:
    name, levels = grid.axis("optimize.objective={name: dpo, beta: 0.1},{name: ipo}")
    assert list(levels.values()) == [
        {"optimize": {"objective": {"name": "dpo", "beta": 0.1}}},
        {"optimize": {"objective": {"name": "ipo"}}},
    ]
    assert list(grid.axis("optimize.learning_rate=5e-7,1e-6")[1].values())[0] == {"optimize": {"learning_rate": 5e-7}}
    assert list(grid.axis("selfplay.rounds=null")[1].values()) == [{"selfplay": {"rounds": None}}]


def test_a_grid_lies_over_a_study(tmp_path, monkeypatch) -> None:
    study(tmp_path, monkeypatch)
    asked = sweep.ask([], "small", ["optimize.learning_rate=1,2"])
    assert list(asked.axes) == ["start", "pairs", "optimize.learning_rate"]
    assert len(grid.cells(asked)) == 2 + 2 * 8
    assert [cell.overlay["optimize"]["learning_rate"] for cell in grid.cells(asked)][-2:] == [1, 2]


@pytest.mark.parametrize("name", grid.names())
def test_a_study_of_the_project_hangs_together(name: str) -> None:
    """Every cell passes the checks of all stages, every number of pairs is labelled, and all cells differ."""
    asked, params = grid.load(name), recipes.read(ROOT / "params.yaml")
    assert "# python -m flows.sweep --study " + name in (grid.HERE / f"{name}.yaml").read_text()
    seen = []
    for cell in grid.cells(asked):
        laid = recipes.apply(recipes.apply(params, recipes.load(cell.recipe)), cell.overlay)
        check.params(ROOT, laid)
        assert laid["optimize"]["preferences"] <= laid["generate"]["prompts"] <= laid["prepare"]["train"]
        assert (laid["evaluate"]["policy"] == "data/sft") == (cell.recipe == asked.untrained)
        assert laid not in seen
        seen.append(laid)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_passes_the_checks_of_all_stages(name: str) -> None:
    params = recipes.apply(recipes.read(ROOT / "params.yaml"), recipes.load(name))
    check.nodes(params, recipes.read(ROOT / "params.yaml"))
    check.params(ROOT, params)


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("axis: {}", "unknown key 'axis'; did you mean 'axes'?"),
        ("axes: {}", "recipes: empty; write"),
        ("recipes: [dpo]", "recipes: not a mapping; write"),
        ("recipes: {dpo: 3}", "recipes.dpo: not a mapping"),
        ("recipes: {dpo: }\nuntrained: sft", "untrained: 'sft' is not one of its recipes; known: dpo"),
        ("recipes: {dpo: }\naxes: {seed: {a: }}", "axes.seed: 'seed' is another column of the rows"),
        ("recipes: {dpo: }\naxes: {start: }", "axes.start: empty"),
        ("recipes: {dpo: }\naxes: {start: {a: 1}}", "axes.start.a: not a mapping"),
        ("recipes: {dpo: }\nskills: {dialogue: win_rate}", "skills.dialogue: not a list of metrics"),
        ("- dpo", "not a mapping"),
    ],
)
def test_a_mistake_in_a_study_is_one_line(text: str, said: str, tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError) as error:
        study(tmp_path, monkeypatch, text)
    assert said in str(error.value)
    assert "small.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (([], None, []), "nothing to run"),
        ((["dpo"], "small", []), "both recipes and a study"),
        (([], "smal", []), "no study is called 'smal'; did you mean 'small'?"),
        (([], "small", ["start=1"]), "axis 'start' is there already"),
        ((["dpo"], None, ["label.flip"]), "--grid label.flip: no values"),
        ((["dpo"], None, ["label.flip=0,0"]), "a value stands there twice"),
        ((["dpo"], None, ["label.flip={0"]), "the values are not YAML"),
    ],
)
def test_a_mistake_in_what_is_asked_is_one_line(asked: tuple, said: str, tmp_path, monkeypatch) -> None:
    study(tmp_path, monkeypatch)
    with pytest.raises(UserError) as error:
        sweep.ask(*asked)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lable": {"flip": 0.1}}, "params.yaml: no node 'lable'; did you mean 'label'?"),
        ({"label": {"flp": 0.1}}, "params.yaml label.flp: unknown key; did you mean 'flip'?"),
        ({"optimize": {"objective": {"name": "dpoo"}}}, "params.yaml optimize.objective.name"),
        ({"optimize": {"preferences": 0}}, "params.yaml optimize.preferences: 0: "),
        ({"selfplay": {"rounds": {"r2": None}}}, "evaluate.policy: no stage writes 'data/selfplay/r2'; did you mean"),
    ],
)
def test_a_mistake_in_an_overlay_is_found_by_the_stages_that_read_it(changed: dict, said: str) -> None:
    known = recipes.read(ROOT / "params.yaml")
    params = recipes.apply(known, changed)

    def checked() -> None:
        check.nodes(params, known)
        check.params(ROOT, params)

    with pytest.raises(UserError) as error:
        checked()
    assert said in str(error.value)


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for key, value in project.environment(folder).items():
        monkeypatch.setenv(key, value)
    return folder


def test_two_cells_that_are_the_same_are_a_mistake(here: Path) -> None:
    asked = Study({"dpo": {}}, axes={"rate": {"low": {"optimize": {"learning_rate": 5e-7}}, "as_it_is": {}}})
    with pytest.raises(UserError, match="dpo, rate as_it_is: is the same setting as dpo, rate low; change something"):
        sweep.lay_out(here, asked, 1, [])


def test_all_cells_run_the_code_of_one_moment_and_seeds_are_outermost(here: Path) -> None:
    asked = sweep.ask(["dpo"], None, ["optimize.learning_rate=1e-3,2e-3"])
    found = sweep.lay_out(here, asked, 2, ["prepare.sleep=1"])
    assert [seed for _, seed, _ in found] == [0, 0, 1, 1]
    assert len({plan.commit for *_, plan in found}) == 1
    assert [plan.params["optimize"]["learning_rate"] for *_, plan in found] == [1e-3, 2e-3] * 2
    settings = ["optimize.learning_rate=2e-3", "prepare.sleep=1"]
    assert experiments.plan(here, "dpo", 1, settings).name == found[-1][2].name, "it is found again by flows.align"


# ---------------------------------------------------------------------------------------------------- for real


@pytest.mark.slow
def test_mistakes_end_with_2_before_anything_ran(folder: Path, server: str) -> None:
    """The study's params are for the project's own graph, of which this small one lacks nodes."""
    for asked in (("--study", "tiny"), ("--recipes", "dpo", "--grid", "lable.flip=0,1"), ("--study", "nothing")):
        done = flow(folder, "sweep", *asked, PREFECT_API_URL=server)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
    assert "no study is called 'nothing'" in done.stderr
    assert project.log(folder) == []


@pytest.mark.slow
def test_a_study_that_was_killed_goes_on_where_it_was(folder: Path, server: str) -> None:
    from mlflow import MlflowClient

    (folder / "studies").mkdir()
    (folder / "studies/small.yaml").write_text(STUDY.replace(", cpo: {optimize: {learning_rate: 2e-7}}", ""))
    command = [sys.executable, "-c", SMALL, "--study", "small"]
    with started(command, folder, PREFECT_API_URL=server) as process:
        end = time.monotonic() + 120
        while len({row[-2] for row in project.log(folder)}) < 2:
            assert process.poll() is None, (folder / "output.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    before = project.log(folder)
    first = before[0][-2]
    done = subprocess.run(
        command, cwd=folder, env=project.environment(folder, PREFECT_API_URL=server), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len({row[-2] for row in before}) == 2, "the second had begun when it was killed"
    assert first not in {row[-2] for row in project.log(folder)[len(before) :]}, "what was finished ran again"
    assert "| *untrained* | – | 1 |" in done.stdout
    assert "### Average rank" in done.stdout
    results = folder / "experiments" / "small"
    assert {"study.md", "study-pairs.png", "comparison.csv"} <= {file.name for file in results.iterdir()}
    header, *rows = (results / "comparison.csv").read_text().splitlines()
    assert header.startswith("recipe,start,pairs,seed,experiment,")
    assert len(rows) == 2 + 4
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("prefloop").experiment_id])
    [parent] = [run for run in runs if run.data.tags.get("prefloop.sweep") == "small"]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(rows)
    tags = {(run.data.tags["sweep.start"], run.data.tags["sweep.pairs"]) for run in children}
    assert tags == {("sft", "16"), ("sft", "64"), ("bare", "16"), ("bare", "64"), ("sft", "–"), ("bare", "–")}
    assert {"study.md", "study-pairs.png"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}
