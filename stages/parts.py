"""Find a part by its file name, check its settings against its signature, keep its spec.

A part is one function in the file of its own name: `stages/optimize/objectives/dpo.py` defines `dpo` (a metric is a
class: `win_rate.py` defines `WinRate`). There is no list to register it in. `python -m stages.parts` prints the table
of all parts and writes stages/PARTS.md.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from stages.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
HOMES = {
    "sampler": "stages/generate/samplers",
    "reward": "stages/label/rewards",
    "judge": "stages/label/judges",
    "pairing": "stages/label/pairings",
    "objective": "stages/optimize/objectives",
    "advantage": "stages/optimize/advantages",
    "curriculum": "stages/optimize/curricula",
    "opponent": "stages/selfplay/opponents",
    "metric": "stages/evaluate/metrics",
}
FAMILIES = ("text", "image", "control", "vision", "tabular")
NEEDS = (
    "reference",  # Steps.ref
    "behaviour",  # Steps.old
    "value",  # Steps.value
    "entropy",  # Steps.entropy
    "scores",  # prob, margin or win rates of the labelled candidates
    "rewards",  # what each reward of the panel declares, by the key of its scores (a pairing)
    "step_reward",  # Steps.reward
    "kl",  # Steps.kl
    "hidden",  # Steps.hidden
    "key_rank",  # Steps.key_rank
    "advantage",  # Groups.advantage
    "logits",
    "mismatch",  # Singles.mismatch
    "samples",  # Hybrid.samples
    "model",  # the policy itself (a judge or reward that asks it)
    "encoder",  # the sentence encoder
    "reward_model",  # the trained reward model
)


@dataclass(frozen=True)
class Spec:
    """Literal facts that a part declares about itself."""

    paper: str = ""
    equation: str = ""
    families: tuple[str, ...] = FAMILIES
    needs: tuple[str, ...] = ()
    idle: tuple[tuple[str, str], ...] = ()  # (need, setting): the need falls away where that setting is 0
    couples: bool = False  # examples of a batch interact
    online: bool = False  # needs fresh samples of the policy
    range: tuple[float, float] | None = None  # rewards and metrics: the values it can take
    higher: bool = True  # rewards and metrics: whether more is better


def part(**facts: Any) -> Callable[[Callable], Callable]:
    """Declare the facts of a part: `@part(paper="arXiv 2305.18290", equation="7", needs=("reference",))`."""
    spec = Spec(**facts)
    unknown = (set(spec.families) - set(FAMILIES)) | (set(spec.needs) - set(NEEDS))
    assert not unknown, f"unknown families or needs: {unknown}"

    def declare(function: Callable) -> Callable:
        function.spec = spec  # type: ignore[attr-defined]
        return function

    return declare


@dataclass(frozen=True)
class Part:
    """A part as found on disk."""

    kind: str
    name: str
    function: Callable
    spec: Spec

    @property
    def file(self) -> str:
        """Path of the part's file, relative to the repository."""
        return f"{HOMES[self.kind]}/{self.name}.py"

    def needs(self, settings: dict[str, Any]) -> tuple[str, ...]:
        """What it needs under these settings, filled in."""
        idle = {need for need, setting in self.spec.idle if not settings[setting]}
        return tuple(need for need in self.spec.needs if need not in idle)

    @property
    def init(self) -> Callable[..., dict[str, Tensor]] | None:
        """What makes parameters of its own, where it has any: `init` in its file, of a batch and the settings.

        They are learned beside the policy's and passed to the part as `head`; no policy is saved with them.
        """
        return getattr(importlib.import_module(self.function.__module__), "init", None)

    @property
    def feedback(self) -> str:
        """The type of the batch that an objective takes: `Pairs`, `Groups`, `Singles`, ..."""
        return get_type_hints(self.function)["batch"].__name__

    @property
    def settings(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters of the signature that have a default: what params.yaml may set."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def names(kind: str) -> list[str]:
    """Names of all parts of a kind, in alphabetical order."""
    return sorted(f.stem for f in (ROOT / HOMES[kind]).glob("*.py") if not f.stem.startswith("_"))


def find(kind: str, name: str, *, where: str = "params.yaml") -> Part:
    """Import the part `name` of a kind.

    Raises:
        UserError: no file of that name in the kind's folder.
    """
    if name not in names(kind):
        raise UserError(f"no {kind} is called '{name}'", where=where, mend=nearest(name, names(kind)))
    module = importlib.import_module(f"{HOMES[kind].replace('/', '.')}.{name}")
    function = getattr(module, name if kind != "metric" else "".join(word.title() for word in name.split("_")))
    return Part(kind, name, function, function.spec)


def fits(found: Part, family: str, *, where: str) -> None:
    """The part serves this family of policy.

    Raises:
        UserError: it does not.
    """
    if family not in found.spec.families:
        what = f"{found.kind} '{found.name}' does not fit the family '{family}'"
        raise UserError(what, where=where, mend=f"it fits {', '.join(found.spec.families)}")


def check(found: Part, settings: dict[str, Any], *, where: str = "params.yaml") -> dict[str, Any]:
    """Check settings against the part's signature and fill in its defaults.

    The signature is the schema: annotations such as `Annotated[float, Field(gt=0)]` give type and range.

    Raises:
        UserError: a setting that the part does not have, of the wrong type or out of range.
    """
    for key in settings:
        if key not in found.settings:
            mend = nearest(key, list(found.settings)) if found.settings else "remove it: the part has no settings"
            raise UserError(f"{found.kind} '{found.name}' has no setting '{key}'", where=where, mend=mend)
    annotated = found.function.__init__ if inspect.isclass(found.function) else found.function  # type: ignore[misc]
    hints = get_type_hints(annotated, include_extras=True)
    schema = create_model(  # type: ignore[call-overload]
        found.name,
        __config__=ConfigDict(extra="forbid", strict=True),
        **{name: (hints[name], Field(default=p.default, validate_default=False)) for name, p in found.settings.items()},
    )
    try:
        return schema(**settings).model_dump()
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{first['loc'][0]} = {first['input']!r}: {first['msg']}",
            where=f"{where}.{first['loc'][0]}",
            mend=f"see the docstring in {found.file}",
        ) from None


def main() -> None:
    """Print the table of all parts and write stages/PARTS.md."""
    catalogue = importlib.import_module("stages.catalogue")  # by name: no stage depends on how parts are told
    print(catalogue.write(ROOT / "stages" / "PARTS.md"))


if __name__ == "__main__":
    main()
