"""What the stages say of a setting before any of them runs: each checks its own nodes of params.yaml."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from flows import recipes
from stages.errors import UserError, nearest

COMMAND = re.compile(r"python -m stages\.(?P<stage>\w+)(?P<each> \$\{key\})?")


def nodes(node: recipes.Node, known: recipes.Node) -> None:
    """Every node is one of params.yaml: no stage reads, or misses, another.

    Raises:
        UserError: naming the first that is not.
    """
    for key in node:
        if key not in known:
            raise UserError(f"no node '{key}'", where="params.yaml", mend=nearest(str(key), list(known)))


def params(root: Path, node: recipes.Node) -> None:
    """Let every stage of the graph in `root` check params that are yet to be written.

    A command of dvc.yaml that is none of ours has nothing to say.

    Raises:
        UserError: the first fault, as the stage would tell it.
    """
    from stages import config  # late: it takes a second with the parts

    outputs(root, node)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "params.yaml"
        recipes.write(file, node)
        try:
            for stage in stages(root, node):
                stage.check(config.load(stage.schema, file))
        except UserError as error:
            where = re.sub(rf"^{re.escape(str(file))}(:\d+)?", "params.yaml", error.where)  # nobody sees its lines
            raise UserError(error.what, where=where, mend=error.mend) from None


def outputs(root: Path, node: recipes.Node) -> None:
    """What params name of a stage's results, such as `data/selfplay/r2`, is what that stage will write.

    Raises:
        UserError: naming the first that nothing writes, as the policy of a round that was taken out.
    """
    written: dict[str, list[str]] = {}  # by stage
    for name, stage in recipes.read(root / "dvc.yaml").get("stages", {}).items():
        keys = node.get(name, {}).get("rounds", {}) if "foreach" in stage else [""]
        outs = stage.get("do", stage).get("outs", [])
        written[name] = [str(out).replace("${key}", key) for out in outs for key in keys]
    for place, value in leaves(node):
        owner = value.split("/")[1] if value.startswith("data/") else ""
        if owner in written and not any(f"{value}/".startswith(f"{out}/") for out in written[owner]):
            mend = nearest(value, [out for outs in written.values() for out in outs])
            raise UserError(f"no stage writes '{value}'", where=f"params.yaml {place}", mend=mend)


def leaves(node: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a node with the keys that lead there.

    >>> list(leaves({"a": {"b": "x", "c": 1}}))
    [('a.b', 'x')]
    """
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{place}.{key}".lstrip("."))
    elif isinstance(node, str):
        yield place, node


def stages(root: Path, node: recipes.Node) -> Iterator[Any]:
    """The stages that dvc.yaml runs by `python -m stages.NAME`, one a round where it says `foreach`."""
    for name, stage in recipes.read(root / "dvc.yaml").get("stages", {}).items():
        found = COMMAND.fullmatch(str(stage.get("do", stage).get("cmd")))
        if not found or not (root / "stages" / found["stage"] / "run.py").exists():
            continue
        module = import_module(f"stages.{found['stage']}.run")
        if found["each"]:
            yield from (module.stage(key) for key in node.get(name, {}).get("rounds", {}))
        else:
            yield module.STAGE
