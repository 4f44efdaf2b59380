"""A grid of experiments: recipes x levels of axes x seeds.

A level is an overlay that has a name, an axis is the levels of one thing. `--grid label.flip=0,0.2` makes an axis of a
key of params.yaml. A study, `flows/studies/NAME.yaml`, names recipes and axes and says how the rows are to be read:

    recipes: {dpo: {}, kto: {optimize: {per_device_train_batch_size: 8}}}    # each with what is laid over it here
    params: {...}                                  # laid over every recipe, before that
    axes:
      start: {with_sft: {}, without_sft: {sft: {num_train_epochs: 0}}}
      pairs: {16: {optimize: {preferences: 16}}, 64: {optimize: {preferences: 64}}}
    untrained: untrained                           # a recipe that ends with the policy that the others start from
    skills: {dialogue: [win_rate], nearness: [-kl]}    # metrics by what they tell; with a minus, less is better

The axis that is called `start` changes what training starts from. The untrained recipe has one row of each start: of
every other axis it takes the first level, which changes nothing of it and is told as a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

from flows import recipes
from flows.recipes import Node
from stages.errors import UserError, nearest
from stages.evaluate.study_rows import DASH, START

HERE = Path(__file__).resolve().parent / "studies"
TAKEN = ("recipe", "seed", "experiment")  # columns of the rows beside the axes
Levels = Mapping[str, Node]


@dataclass(frozen=True)
class Study:
    """What a study file says."""

    recipes: Levels  # what is laid over each
    params: Node = field(default_factory=dict)
    axes: Mapping[str, Levels] = field(default_factory=dict)
    untrained: str | None = None
    skills: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One setting of a grid."""

    recipe: str
    levels: dict[str, str]  # by axis
    overlay: Node  # over the recipe

    def __str__(self) -> str:
        """As it is named in an error: `dpo, start without_sft, pairs 16`."""
        return ", ".join([self.recipe, *(f"{axis} {level}" for axis, level in self.levels.items())])


def names() -> list[str]:
    """Names of all studies."""
    return sorted(file.stem for file in HERE.glob("*.yaml"))


def load(name: str) -> Study:
    """Read a study by its name.

    Raises:
        UserError: there is none of that name, or its file does not say what a study says.
    """
    if name not in names():
        raise UserError(f"no study is called '{name}'", where="flows/studies", mend=nearest(name, names()))
    where, node = f"flows/studies/{name}.yaml", recipes.read(HERE / f"{name}.yaml")
    known = [each.name for each in fields(Study)]
    for key in node:
        if key not in known:
            raise UserError(f"unknown key '{key}'", where=where, mend=nearest(str(key), known))
    chosen = mapping(node.get("recipes"), f"{where} recipes", filled=True)
    skills = mapping(node.get("skills"), f"{where} skills")
    for skill, metrics in skills.items():
        if not isinstance(metrics, list):
            raise UserError("not a list of metrics", where=f"{where} skills.{skill}", mend="write [win_rate, ...]")
    if node.get("untrained") is not None and node["untrained"] not in chosen:
        mend = nearest(str(node["untrained"]), list(chosen))
        raise UserError(f"'{node['untrained']}' is not one of its recipes", where=f"{where} untrained", mend=mend)
    return Study(
        recipes={recipe: mapping(over, f"{where} recipes.{recipe}") for recipe, over in chosen.items()},
        params=mapping(node.get("params"), f"{where} params"),
        axes=_axes(mapping(node.get("axes"), f"{where} axes"), where),
        untrained=node.get("untrained"),
        skills=skills,
    )


def _axes(node: Node, where: str) -> dict[str, Levels]:
    found: dict[str, Levels] = {}
    for axis, levels in node.items():
        place = f"{where} axes.{axis}"
        if axis in TAKEN:
            raise UserError(f"'{axis}' is another column of the rows", where=place, mend="call the axis otherwise")
        levels = mapping(levels, place, filled=True)
        found[axis] = {level: mapping(over, f"{place}.{level}") for level, over in levels.items()}
    return found


def mapping(node: Any, where: str, *, filled: bool = False) -> Node:
    """A mapping with names for keys; nothing is an empty one.

    Raises:
        UserError: it is something else, or empty where it must not be.
    """
    if not isinstance(node or {}, dict) or (filled and not node):
        raise UserError(
            "not a mapping" if node else "empty", where=where, mend="write `name: {stage: {setting: value}}`"
        )
    return {str(key): value for key, value in (node or {}).items()}


def axis(text: str) -> tuple[str, dict[str, Node]]:
    """The axis that `KEY=V1,V2` makes; values are YAML. Keys with commas between are given the same value.

    >>> axis("label.flip=0,0.2")
    ('label.flip', {'0': {'label': {'flip': 0}}, '0.2': {'label': {'flip': 0.2}}})
    >>> axis("a.x,b.y=1")
    ('a.x,b.y', {'1': {'a': {'x': 1}, 'b': {'y': 1}}})

    Raises:
        UserError: no `=`, no value, a value twice, or values that are not YAML.
    """
    keys, _, values = text.partition("=")
    where, mend = f"--grid {text}", "write --grid stage.setting=value,value"
    try:
        found = recipes.parse(f"[{values}]")
    except recipes.YAMLError:
        raise UserError("the values are not YAML", where=where, mend=mend) from None
    if not keys or not found:
        raise UserError("no values", where=where, mend=mend)
    levels: dict[str, Node] = {}
    for value in found:
        overlay: Node = {}
        for key in keys.split(","):
            overlay = recipes.apply(overlay, nested(key.strip().split("."), value), keep_nulls=True)
        levels[recipes.literal(value)] = overlay
    if len(levels) < len(found):
        raise UserError("a value stands there twice", where=where, mend="leave one out")
    return keys, levels


def nested(path: list[str], value: Any) -> Node:
    """A value at the end of a path.

    >>> nested(["a", "b"], 1)
    {'a': {'b': 1}}
    """
    head, *rest = path
    return {head: nested(rest, value) if rest else value}


def cells(study: Study) -> list[Cell]:
    """Every recipe at every level of every axis; the untrained one at every start.

    Raises:
        UserError: a recipe does not exist.
    """
    found = []
    for recipe, over in study.recipes.items():
        recipes.load(recipe)
        once = {axis for axis in study.axes if recipe == study.untrained and axis != START}
        own = {axis: list(levels)[: 1 if axis in once else None] for axis, levels in study.axes.items()}
        for chosen in product(*own.values()):
            overlay = recipes.apply(study.params, over, keep_nulls=True)
            for axis, level in zip(own, chosen, strict=True):
                overlay = recipes.apply(overlay, study.axes[axis][level], keep_nulls=True)
            told = {axis: DASH if axis in once else level for axis, level in zip(own, chosen, strict=True)}
            found.append(Cell(recipe, told, overlay))
    return found
