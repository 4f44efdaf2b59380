"""The real graph on tiny policies, run once for all tests of this folder; each test that changes it works on a copy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows import recipes

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


def reproduced(folder: Path, recipe: str, **limit: int) -> Path:
    """The folder with the code, a recipe's params, and all that `dvc repro` makes of them."""
    copy_code(folder, recipe)
    done = command(folder, "dvc", "repro", **limit)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A workspace in which `dvc repro` has run once."""
    return reproduced(tmp_path_factory.mktemp("graph") / "project", "tiny")


@pytest.fixture
def workspace(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished workspace, to change at will."""
    folder = tmp_path / "project"
    shutil.copytree(finished, folder, symlinks=True)
    return folder


@pytest.fixture(scope="session")
def finished_image(tmp_path_factory) -> Path:
    """A workspace in which `dvc repro` has run once on images."""
    return reproduced(tmp_path_factory.mktemp("images") / "project", "tiny_image", timeout=880)  # it may be busy


@pytest.fixture
def image_workspace(finished_image: Path, tmp_path: Path) -> Path:
    """A copy of the finished image workspace, to change at will."""
    folder = tmp_path / "project"
    shutil.copytree(finished_image, folder, symlinks=True)
    return folder
