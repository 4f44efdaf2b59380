"""What the chosen parts are made of: `python -m stages.chosen` writes data/parts/ for the graph.

dvc.yaml can name the file of one chosen part, but no list of them, and it sees no imports. Each stage depends on its
entry here instead, so that an edit makes it stale if, and only if, a part that it chose is concerned.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stages.parts import HOMES, ROOT

CHOICES = {  # by stage and kind of part: the nodes of params.yaml that choose
    "generate": {
        "sampler": ["generate.sampler"],
        "reward": ["generate.panel.rewards"],
        "judge": ["generate.panel.judges"],
    },
    "label": {"reward": ["label.rewards"], "judge": ["label.judges"], "pairing": ["label.pairing"]},
    "reward": {"pairing": ["reward.pairing"], "objective": ["reward.objective"]},
    "optimize": {
        "objective": ["optimize.objective"],
        "reward": ["optimize.online.rewards", "optimize.watch.rewards"],
        "judge": ["optimize.online.judges"],
        "advantage": ["optimize.online.advantage"],
        "curriculum": ["optimize.curriculum"],
    },
    "selfplay": {
        "sampler": ["selfplay.sampler"],
        "reward": ["selfplay.rewards"],
        "judge": ["selfplay.judges"],
        "pairing": ["selfplay.pairing"],
        "objective": ["optimize.objective"],
        "curriculum": ["optimize.curriculum"],
        "opponent": ["selfplay.opponent"],
    },
    "evaluate": {
        "sampler": ["evaluate.sampler", "evaluate.kl_sampler"],
        "reward": ["label.rewards", "evaluate.independent.rewards"],
        "judge": ["label.judges", "evaluate.independent.judges"],
        "metric": ["evaluate.metrics"],
    },
}


def chosen(params: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The hash of every file that the chosen parts are made of, by stage and file."""
    found = {}
    for stage, kinds in CHOICES.items():
        parts = {
            f"{HOMES[kind]}/{name}.py"
            for kind, nodes in kinds.items()
            for node in nodes
            for name in names(_node(params, node))
        }
        found[stage] = {file: _md5(ROOT / file) for file in sorted(made_of(parts))}
    return found


def names(node: dict[str, Any]) -> list[str]:
    """Part names of a list of parts, each its key or what its entry says instead, or of the one chosen part.

    >>> names({"length": {"weight": 1}, "held_out": {"name": "digit"}}), names({"name": "dpo", "beta": 0.1})
    (['length', 'digit'], ['dpo'])
    """
    if isinstance(node.get("name"), str):
        return [node["name"]]
    return [str(entry["name"]) if isinstance(entry, dict) and "name" in entry else key for key, entry in node.items()]


def made_of(files: Iterable[str]) -> set[str]:
    """The files with all of stages/ that they import, at any depth, and the data that lies beside those."""
    seen: set[str] = set()
    ahead = list(files)
    while ahead:
        file = ahead.pop()
        if file not in seen:
            seen.add(file)
            ahead += [*imported(ROOT / file), *beside(ROOT / file)]
    return seen


def imported(file: Path) -> list[str]:
    """The files of stages/ that a Python file imports; none where it is not there, as a misspelt part is not."""
    if file.suffix != ".py" or not file.exists():
        return []
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stages":
            base = str(node.module).replace(".", "/")
            found += [f"{base}.py", *(f"{base}/{alias.name}.py" for alias in node.names)]
    return [name for name in found if (ROOT / name).exists()]


def beside(file: Path) -> list[str]:
    """The YAML files of a Python file's folder, which it may read."""
    folder = file.parent
    return [one.relative_to(ROOT).as_posix() for one in folder.glob("*.yaml")] if file.suffix == ".py" else []


def _node(params: Any, key: str) -> Any:
    for name in key.split("."):
        params = (params or {}).get(name, {})
    return params or {}


def _md5(file: Path) -> str:
    """Content hash; of a file that is not there, none: the stage itself says what is wrong with the name."""
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest() if file.exists() else ""


def main() -> None:
    """Write data/parts/<stage>.json."""
    from ruamel.yaml import YAML

    params = YAML(typ="safe").load(Path("params.yaml").read_text(encoding="utf-8"))
    for stage, files in chosen(params).items():
        file = Path("data/parts") / f"{stage}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
