"""The real graph on tiny policies, run once for all tests of this folder; each test that changes it works on a copy."""

import contextlib
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from flows import dvc, recipes
from stages import chosen, entry

ROOT = Path(__file__).resolve().parents[2]
TOP = ("stages", "flows", "params.yaml", "dvc.yaml", ".dvcignore", "pyproject.toml")


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a user's shell in a folder, with that folder's code first."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        **more,
    }


def command(folder: Path, *words: str, timeout: float = 280, **more: str) -> subprocess.CompletedProcess:
    """Run a command as a user would, in a folder."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment(folder, **more),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def copy_code(folder: Path, recipe: str = "tiny") -> None:
    """The repository's code and a params.yaml for tiny models, under git and DVC."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOP:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    recipes.write(folder / "params.yaml", recipes.apply(recipes.read(ROOT / "params.yaml"), recipes.load(recipe)))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    assert command(folder, "dvc", "init", "-q").returncode == 0


def execute(*names: str) -> None:
    """Run stages in this process, by their names in the graph, where the working folder is."""
    for name in names:
        stage, _, turn = name.partition("@")
        if stage == "parts":
            chosen.main()
        else:
            module = importlib.import_module(f"stages.{stage}.run")
            entry.execute(module.stage(turn) if turn else module.STAGE, apart=False)


def executed(folder: Path) -> None:
    """Run all stages of a folder in this process, in the order of the graph: what `dvc repro` does, imports once."""
    store = {"MLFLOW_TRACKING_URI": environment(folder)["MLFLOW_TRACKING_URI"]}
    with contextlib.chdir(folder), mock.patch.dict(os.environ, store):
        execute(*dvc.stages(folder))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A workspace in which `dvc repro` has run once."""
    folder = tmp_path_factory.mktemp("graph") / "project"
    copy_code(folder)
    done = command(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished workspace, to change at will."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


@pytest.fixture
def inside(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished workspace, and this process in it: see `execute`."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment(workspace)["MLFLOW_TRACKING_URI"])
    return workspace


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path, str], str]:
    """Run a stage of a folder that must fail as a user's mistake, in this process; returns its one line."""
    monkeypatch.setattr(entry, "execute", partial(entry.execute, apart=False))

    def told(folder: Path, name: str) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment(folder)["MLFLOW_TRACKING_URI"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            entry.main(importlib.import_module(f"stages.{name}.run").STAGE)
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        return lines[0]

    return told


@pytest.fixture(scope="session")
def finished_image(tmp_path_factory) -> Path:
    """A workspace in which every stage has run once on images, as DVC was told."""
    folder = tmp_path_factory.mktemp("images") / "project"
    copy_code(folder, "tiny_image")
    executed(folder)
    assert command(folder, "dvc", "commit", "--force").returncode == 0
    return folder


@pytest.fixture
def image_workspace(finished_image: Path, tmp_path: Path) -> Path:
    """A copy of the finished image workspace, to change at will."""
    folder = tmp_path / "project"
    shutil.copytree(finished_image, folder, symlinks=True)
    return folder
