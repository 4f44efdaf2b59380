"""Recipes: overlays, and the `-S` arguments that make DVC lay the same overlay."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from flows import dvc, recipes
from stages import parts
from stages.config import Run
from stages.errors import UserError
from stages.policies import family
from tests.flows import project

PARAMS = {
    "run": {"seed": 0},
    "optimize": {
        "objective": {"name": "dpo", "beta": 0.1},
        "rate": 1e-6,
        "tags": [1, 2],
        "plain": {"q": 1},
    },
}
AWKWARD = {
    "exponent": "1e-3",
    "word": "null",
    "trailing": "a\\",
    "quoted": "it's \\'x\\' and \"y\"",
    "sentence": "a, b=c: {d} [e] # f",
    "hub": "org/model-1.5",
    "flag": "-x",
    "empty": "",
    "accents": "ä ö",
    "list": [{"name": "x's y", "z": None}, True, 5e-7, -1],
    "mapping": {"e": {}},
    "infinity": float("inf"),
}
OVERLAYS = {
    "chosen part": {"optimize": {"objective": {"name": "simpo", "beta": 2.0, "gamma": 5e-7}}},
    "merged mapping": {"optimize": {"plain": {"q": 2, "r": 3}}},
    "scalar to mapping": {"optimize": {"rate": {"peak": 1, "warm": 2}}},
    "mapping to scalar": {"optimize": {"plain": 3}},
    "same value": {"optimize": {"rate": 1e-6}, "run": {"seed": 0}},
    "new node": {"evaluate": {"metrics": [{"name": "win_rate"}, {"name": "kl", "k": 2}]}},
    "awkward values, replacing": {"optimize": {"rate": "null", "tags": []}},
    "awkward values, added": {"optimize": {"new": {"deep": AWKWARD}}},
    "bool over int": {"run": {"seed": False}},
}


@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=OVERLAYS)
def test_dvc_lays_the_same_overlay(overlay: dict, tmp_path: Path) -> None:
    """The function that `dvc exp run -S` calls turns params.yaml into what `apply` gives."""
    from dvc.utils.hydra import apply_overrides

    file = tmp_path / "params.yaml"
    recipes.write(file, PARAMS)
    changes = recipes.overrides(PARAMS, overlay)
    if changes:
        apply_overrides(file, changes)
    assert recipes.read(file) == recipes.apply(PARAMS, overlay)
    assert bool(changes) == (repr(recipes.apply(PARAMS, overlay)) != repr(PARAMS))


def test_a_recipe_runs_by_plain_dvc(folder: Path) -> None:
    """The documented line, from the shell, replaces a chosen part whole."""
    overlay = {"optimize": {"objective": {"name": "simpo", "beta": 2.0, "note": "it's new"}}}
    changes = recipes.overrides(recipes.read(folder / "params.yaml"), overlay)
    quoted = " ".join(f"-S {shlex.quote(change)}" for change in changes)
    done = project.run(
        folder, "bash", "-c", "printf '%s\\n' \"$LINE\" | xargs python -m dvc exp run", LINE=quoted, **project.AUTHOR
    )
    assert done.returncode == 0, done.stderr
    assert recipes.read(folder / "params.yaml")["optimize"]["objective"] == overlay["optimize"]["objective"]


def test_every_recipe_loads_and_says_only_what_is_known() -> None:
    for name in recipes.names():
        overlay = recipes.load(name)
        assert overlay, name
        assert recipes.apply({}, overlay) == overlay


def test_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no recipe is called 'nothing'"):
        recipes.load("nothing")
    with pytest.raises(UserError, match="did you mean 'optimize'"):
        recipes.settings(["optimise.rate=1"], PARAMS)
    with pytest.raises(UserError, match="no '='"):
        recipes.settings(["optimize.rate"], PARAMS)
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="not a mapping"):
        recipes.read(tmp_path / "list.yaml")
    done = project.run(folder, sys.executable, "-m", "flows.recipes", "nothing")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_settings_read_exponents_as_numbers() -> None:
    assert recipes.settings(["optimize.rate=5e-7", "run.seed=3"], PARAMS) == {
        "optimize": {"rate": 5e-7},
        "run": {"seed": 3},
    }


def test_stages_are_in_the_order_of_the_graph(folder: Path) -> None:
    assert dvc.stages(folder) == ["prepare", "optimize", "selfplay@r1", "evaluate"]


def test_what_a_recipe_takes_out_stays_out_under_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A null of either overlay reaches the params: laying one over the other must not use it up."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text/base.yaml").write_text("rewards: {length: null, exact: {weight: 2}}\n")
    (tmp_path / "text/paper.yaml").write_text("extends: base\nrewards: {exact: null}\nrounds: {r1: null}\n")
    monkeypatch.setattr(recipes, "HERE", tmp_path)
    params = {"rewards": {"length": {}, "exact": {}, "format": {}}, "rounds": {"r1": {}, "r2": {}}}
    assert recipes.apply(params, recipes.load("paper")) == {"rewards": {"format": {}}, "rounds": {"r2": {}}}


IMAGE = sorted(file.stem for file in (recipes.HERE / "image").glob("*.yaml"))


@pytest.mark.parametrize("name", IMAGE)
def test_an_image_recipe_names_its_paper_and_its_command(name: str) -> None:
    paper, command, *_ = (recipes.HERE / "image" / f"{name}.yaml").read_text().splitlines()
    assert re.search(r"arXiv \d{4}\.\d{5}", paper) or paper.startswith("# No paper: ")
    assert command == f"# python -m flows.align --recipe {name}"


@pytest.mark.parametrize("name", IMAGE)
def test_an_image_recipe_hangs_together(name: str) -> None:
    """What no stage can check alone: draws enough for the epochs, a family setting that exists, rounds offline only."""
    params = recipes.apply(recipes.read(recipes.HERE.parents[1] / "params.yaml"), recipes.load(name))
    optimize = params["optimize"]
    family.settings(Run(**params["run"]))
    if "online" in optimize:
        assert not params["selfplay"]["rounds"]
        assert parts.find("objective", optimize["objective"]["name"]).spec.online
    else:
        assert params["reference"]["draws"] >= optimize["num_train_epochs"]
    final = params["evaluate"]["policy"].removeprefix("data/selfplay/")
    assert final == "data/optimize" or final == list(params["selfplay"]["rounds"])[-1]


def laid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    """Recipes of a family `image` in a folder of their own."""
    (tmp_path / "image").mkdir()
    for name, text in files.items():
        (tmp_path / f"image/{name}.yaml").write_text(text)
    monkeypatch.setattr(recipes, "HERE", tmp_path)


def test_a_recipe_extends_one_that_extends_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid(
        tmp_path,
        monkeypatch,
        bed="run: {seed: 1, steps: 10}\noptimize: {objective: {name: dpo, beta: 1000.0}, rate: 1e-4}\n",
        paper="extends: bed\noptimize: {objective: {name: ddpo, clip: 1e-2}}\n",
        mine="extends: image/paper\nrun: {seed: 2}\noptimize: {rate: 3e-4}\n",
    )
    assert recipes.load("paper")["optimize"] == {"objective": {"name": "ddpo", "clip": 0.01}, "rate": 1e-4}
    wanted = {"run": {"seed": 2, "steps": 10}, "optimize": {"objective": {"name": "ddpo", "clip": 0.01}, "rate": 3e-4}}
    assert recipes.load("mine") == wanted, "and `extends` is no node of params.yaml"


def test_a_recipe_extends_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid(tmp_path, monkeypatch, digits="run: {seed: 1}\n", paper="extends: digit\nrun: {seed: 2}\n")
    with pytest.raises(UserError, match="no recipe is called 'digit'; did you mean 'digits'"):
        recipes.load("paper")


def test_a_recipe_that_extends_itself_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laid(tmp_path, monkeypatch, one="extends: two", two="extends: one")
    with pytest.raises(UserError, match="'one' extends itself"):
        recipes.load("one")


def test_an_extending_recipe_is_the_same_by_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The `-S` arguments of the two overlays together turn params.yaml into what both laid one by one give."""
    from dvc.utils.hydra import apply_overrides

    bed = {"optimize": {"objective": {"name": "simpo", "gamma": 2.0}, "tags": None}}
    over = {"run": {"seed": 3}, "optimize": {"plain": {"q": None, "r": 1}}}
    laid(tmp_path, monkeypatch)
    recipes.write(tmp_path / "image/bed.yaml", bed)
    recipes.write(tmp_path / "image/mine.yaml", {"extends": "bed", **over})
    file = tmp_path / "params.yaml"
    recipes.write(file, PARAMS)
    apply_overrides(file, recipes.overrides(PARAMS, recipes.load("mine")))
    assert recipes.read(file) == recipes.apply(recipes.apply(PARAMS, bed), over)
