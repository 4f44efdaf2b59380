"""Where a number came from: git commit, dvc.lock, flow run, versions, and the digest of every input."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.errors import UserError

PARAM_LIMIT = 6000  # characters of a parameter's value that MLflow takes


def md5(data: bytes) -> str:
    """The hash that DVC uses. It names contents here, it protects nothing."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def git_commit() -> str:
    """The commit that is checked out, or "" outside a repository."""
    return _git("rev-parse", "HEAD")


def dirty() -> bool:
    """Whether tracked files differ from the commit. dvc.lock is left out: `dvc repro` itself rewrites it."""
    return bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock"))


def lock_hash() -> str:
    """What `md5sum dvc.lock` prints, or "" where there is none."""
    path = Path("dvc.lock")
    return md5(path.read_bytes()) if path.is_file() else ""


def run_key() -> str:
    """What the stages of one pipeline run have in common, though each is a process of its own."""
    params = Path("params.yaml")
    given = os.environ.get("PREFLOOP_RUN", "")
    return given or md5((params.read_bytes() if params.is_file() else b"") + git_commit().encode())


def tags(stage: str) -> dict[str, str]:
    """The lineage of what happens now in `stage`; facts that are not known are left out."""
    found = {
        "prefloop.stage": stage,
        "prefloop.git_commit": git_commit(),
        "prefloop.git_dirty": str(dirty()).lower(),
        "prefloop.dvc_lock": lock_hash(),
        "prefloop.flow_run": os.environ.get("PREFECT__FLOW_RUN_ID") or os.environ.get("PREFLOOP_FLOW_RUN", ""),
        "prefloop.recipe": os.environ.get("PREFLOOP_RECIPE", ""),
        "prefloop.key": run_key(),
        "prefloop.python": platform.python_version(),
        "prefloop.torch": _version("torch"),
        "prefloop.transformers": _version("transformers"),
    }
    return {key: value for key, value in found.items() if value}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as flat text, values that are too long for MLflow cut and marked with their hash.

    >>> flatten({"objective": {"name": "dpo", "beta": 0.1}, "layers": ["q", "v"], "cap": None})
    {'objective.name': 'dpo', 'objective.beta': '0.1', 'layers': '["q", "v"]', 'cap': 'null'}
    """
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = _cut(value if isinstance(value, str) else json.dumps(value, default=str))
    return flat


def _cut(text: str) -> str:
    mark = f"... md5 {md5(text.encode())}"
    return text if len(text) <= PARAM_LIMIT else text[: PARAM_LIMIT - len(mark)] + mark


def pipeline_params() -> dict[str, str]:
    """params.yaml as flat text; empty where there is none."""
    path = Path("params.yaml")
    return flatten(YAML(typ="safe").load(path) or {}) if path.is_file() else {}


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    return sum(file.stat().st_size for file in files(path))


def files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder in DVC's order."""
    return [path] if path.is_file() else sorted((f for f in path.rglob("*") if f.is_file()), key=lambda f: f.as_posix())


def digest(path: Path, name: str = "") -> str:
    """The md5 that DVC gives a file or a folder: from dvc.lock where it has `name`, else computed the same way.

    An entry of another size is stale (the data was remade by hand) and is not believed.

    Raises:
        UserError: there is nothing at `path`.
    """
    if not path.exists():
        raise UserError("no such input", where=str(path), mend="run the stage that writes it")
    recorded = _locked().get(name.rstrip("/"), {})
    if recorded.get("md5") and recorded.get("size") == size(path):
        return recorded["md5"]
    if path.is_file():
        return _file_md5(path)
    listing = [{"md5": _file_md5(file), "relpath": file.relative_to(path).as_posix()} for file in files(path)]
    listing.sort(key=lambda entry: entry["relpath"])
    return md5(json.dumps(listing, sort_keys=True).encode()) + ".dir"


def _file_md5(path: Path) -> str:
    with path.open("rb") as data:
        return hashlib.file_digest(data, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _locked() -> dict[str, dict[str, Any]]:
    """What dvc.lock records, by path; what a stage wrote wins over what another stage read."""
    path = Path("dvc.lock")
    return _recorded(path.read_bytes()) if path.is_file() else {}


@lru_cache(maxsize=1)  # a stage asks for each of its inputs
def _recorded(lock: bytes) -> dict[str, dict[str, Any]]:
    stages = (YAML(typ="safe").load(lock) or {}).get("stages", {})
    entries = [entry for side in ("deps", "outs") for stage in stages.values() for entry in stage.get(side, [])]
    return {entry["path"].rstrip("/"): entry for entry in entries}
