"""Recipes: named overlays on params.yaml, one file per published setting, `flows/recipes/<family>/<name>.yaml`.

An overlay says only what differs; `extends: NAME` lays it over another recipe. A chosen part, a mapping with a `name`,
replaces the part chosen before; any other mapping is merged; a null takes its key out; everything else is replaced.
A recipe runs in the workspace by

    python -m flows.recipes simpo | xargs dvc exp run

and in a workspace of its own by `python -m flows.align --recipe simpo`.
"""

from __future__ import annotations

import copy
import re
import shlex
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import UserError, nearest

HERE = Path(__file__).resolve().parent / "recipes"
Node = dict[str, Any]


def names() -> list[str]:
    """Names of all recipes: `simpo`, or `text/dpo` where two families have one of that name."""
    files = sorted(HERE.glob("*/*.yaml"))
    stems = [file.stem for file in files]
    return [f"{f.parent.name}/{f.stem}" if stems.count(f.stem) > 1 else f.stem for f in files]


def load(name: str, under: tuple[str, ...] = ()) -> Node:
    """Read a recipe by its name, with or without its family.

    Raises:
        UserError: there is none of that name, its file is not a YAML mapping, or it extends itself.
    """
    files = sorted(HERE.glob("*/*.yaml"))
    found = [file for file in files if name in (file.stem, f"{file.parent.name}/{file.stem}")]
    if len(found) != 1:
        raise UserError(f"no recipe is called '{name}'", where="flows/recipes", mend=nearest(name, names()))
    node = read(found[0])
    base = node.pop("extends", None)
    if base is None:
        return node
    if name in under:
        raise UserError(f"'{name}' extends itself", where=str(found[0]), mend="extend another recipe")
    return apply(load(base, (*under, name)), node, keep_nulls=True)


def read(path: Path) -> Node:
    """Read a YAML 1.2 mapping, in which `5e-7` is a number; an empty file is an empty mapping.

    Raises:
        UserError: the file is missing or is not a YAML mapping.
    """
    try:
        node = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), mend="run this in the folder of dvc.yaml") from None
    except YAMLError as error:
        raise UserError(f"not YAML: {error}", where=str(path), mend="mend the file") from None
    if not isinstance(node or {}, dict):
        raise UserError("not a mapping", where=str(path), mend="write `stage: {setting: value}`")
    return node or {}


def parse(text: str) -> Any:
    """Parse YAML 1.2 into plain Python values."""
    return YAML(typ="safe").load(text)


def write(path: Path, params: Node) -> None:
    """Write params as YAML 1.2."""
    out = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.dump(params, out)
    path.write_text(out.getvalue(), encoding="utf-8")


def _merges(old: Any, new: Any) -> bool:
    return isinstance(old, dict) and isinstance(new, dict) and "name" not in new


def apply(params: Node, overlay: Node, *, keep_nulls: bool = False) -> Node:
    """The params with an overlay laid over them, as new objects.

    A null takes its key out. Between two overlays it is kept, for the params that both will be laid over.

    >>> apply({"a": {"part": {"name": "x", "k": 1}, "n": 2}}, {"a": {"part": {"name": "y"}}})
    {'a': {'part': {'name': 'y'}, 'n': 2}}
    >>> apply({"rewards": {"format": {}, "exact": {}}}, {"rewards": {"exact": None}})
    {'rewards': {'format': {}}}
    """
    result = copy.deepcopy(params)
    for key, new in overlay.items():
        if new is None and not keep_nulls:
            result.pop(key, None)
        elif _merges(result.get(key), new):
            result[key] = apply(result[key], new, keep_nulls=keep_nulls)
        else:
            result[key] = copy.deepcopy(new)
    return result


def overrides(params: Node, overlay: Node, path: str = "") -> list[str]:
    """What `dvc exp run -S` must be told to turn params into `apply(params, overlay)`.

    `-S` merges mappings and cannot replace one, so a node that changes shape is removed and added again.

    >>> overrides({"a": {"part": {"name": "x", "k": 1}, "n": 2}}, {"a": {"part": {"name": "y"}, "n": 3, "m": 4}})
    ['~a.part', '+a.part={name:y}', 'a.n=3', '+a.m=4']
    """
    return list(_overrides(params, overlay, path))


def _overrides(params: Node, overlay: Node, path: str) -> Iterator[str]:
    for key, new in overlay.items():
        here, known, old = path + str(key), key in params, params.get(key)
        if new is None:
            yield from [f"~{here}"] if known else []
        elif _merges(old, new):
            yield from _overrides(old, new, here + ".")  # type: ignore[arg-type]
        elif known and literal(old) == literal(new):  # `==` takes 0 for false
            continue
        elif known and (isinstance(old, dict) or isinstance(new, dict)):
            yield from (f"~{here}", f"+{here}={literal(new)}")
        else:
            yield f"{'' if known else '+'}{here}={literal(new)}"


def literal(value: Any) -> str:
    r"""A value in the grammar of `-S`, which is Hydra's.

    >>> print(literal({"metrics": [{"name": "win_rate"}, None, True, 5e-07, "it's"]}))
    {metrics:[{name:win_rate},null,true,5e-07,'it\'s']}
    """
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(literal, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str):
        return repr(value)
    if re.fullmatch(r"[A-Za-z_]\w*", value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value  # a bare word
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), value) + "'"


def settings(assignments: list[str], params: Node) -> Node:
    """Make an overlay of `stage.setting=value` assignments; values are YAML.

    >>> settings(["optimize.lr=5e-7"], {"optimize": {"lr": 1e-6}})
    {'optimize': {'lr': 5e-07}}

    Raises:
        UserError: an assignment has no `=`, or the node that it names is not in params.yaml.
    """
    overlay: Node = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise UserError("no '='", where=f"--set {assignment}", mend="write --set stage.setting=value")
        *parents, last = path.split(".")
        known, node = params, overlay
        for parent in parents:
            if not isinstance(known.get(parent), dict):
                raise UserError(f"no node '{parent}'", where=f"--set {assignment}", mend=nearest(parent, list(known)))
            known, node = known[parent], node.setdefault(parent, {})
        node[last] = parse(value)
    return overlay


def main(arguments: list[str]) -> int:
    """Print the arguments that make `dvc exp run` run a recipe, or without a name the names of all recipes."""
    if not arguments:
        print("\n".join(names()))
        return 0
    try:
        changes = overrides(read(Path("params.yaml")), load(arguments[0]))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(" ".join(shlex.quote(word) for change in changes for word in ("-S", change)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
