"""Who labels: a panel of rewards and judges as params.yaml names it, checked against the parts before any work."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stages import parts
from stages.config import Config
from stages.errors import UserError, nearest

if TYPE_CHECKING:
    from stages.policies.family import Scorer

KINDS: tuple[Literal["reward", "judge"], ...] = ("reward", "judge")
ENTRY = ("weight", "name")  # what an entry says beside the settings of its part
TOOLS = {"encoder": "encoder", "model": "policy", "reward_model": "scorer"}  # need -> field of Tools and parameter


class Panel(Config):
    """Who scores and who judges, and how sharply scores become probabilities.

    Each entry is `key: {weight: float, **settings of the part}`. The key is the part's name, or any other where the
    entry says the name itself, so that a part may sit there twice, or here with one setting and in another panel with
    another: `digit_held_out: {name: digit, half: second}`. Scores are known by the key. The weight is 1 where it is
    absent; 0 records a score without letting it decide.
    """

    rewards: dict[str, dict[str, Any]] = Field(default_factory=dict)
    judges: dict[str, dict[str, Any]] = Field(default_factory=dict)
    temperature: Annotated[float, Field(gt=0)] = 0.1  # P(first better) = sigmoid(score difference / temperature)


@dataclass(frozen=True)
class Tools:
    """What parts may need; a stage loads only what `needs` names."""

    encoder: Any = None  # .embed(list[str]) -> Tensor [n,d], rows of norm 1
    policy: Any = None  # the language model that a judge asks
    scorer: Scorer | None = None  # the trained reward model


@dataclass(frozen=True)
class Seat:
    """A member of the panel: a part with its checked settings, its weight, and where they were written."""

    key: str  # what its scores are known by
    part: parts.Part
    settings: dict[str, Any]
    weight: float
    where: str

    def call(self, tools: Tools) -> Callable[..., list]:
        """The part with its settings and the tools that it needs.

        Raises:
            UserError: a tool is not there.
        """
        given = {TOOLS[need]: getattr(tools, TOOLS[need]) for need in self.part.spec.needs}
        for need in self.part.spec.needs:
            if given[TOOLS[need]] is None:
                what = f"{self.part.kind} '{self.part.name}' needs the {need.replace('_', ' ')}, which is not there"
                raise UserError(what, where=self.where, mend="run the stage that makes it, or drop the entry")
        return lambda *data: list(self.part.function(*data, **self.settings, **given))


def check(panel: Panel, *, where: str = "params.yaml label", family: str = "") -> list[Seat]:
    """Check a panel against the parts it names, before any work.

    Raises:
        UserError: an unknown part or setting, a bad weight, nobody with a weight, or a part of another family.
    """
    found = [seat for kind in KINDS for seat in seats(panel, kind, where=where)]
    for seat in found:
        if family:
            parts.fits(seat.part, family, where=seat.where)
    if not any(seat.weight for seat in found):
        raise UserError("no reward or judge has a weight", where=where, mend="add one under rewards or judges")
    return found


def seats(panel: Panel, kind: Literal["reward", "judge"], *, where: str = "params.yaml label") -> list[Seat]:
    """The rewards or the judges of a panel, their settings checked and filled in.

    Raises:
        UserError: an unknown part or setting, or a bad weight.
    """
    found = []
    for key, entry in getattr(panel, f"{kind}s").items():
        place = f"{where}.{kind}s.{key}"
        part = named(kind, key, entry, where=place)
        settings = {name: value for name, value in entry.items() if name not in ENTRY}
        for name in settings:
            if name not in part.settings:
                mend = nearest(name, [*part.settings, *ENTRY])
                raise UserError(f"{kind} '{part.name}' has no setting '{name}'", where=place, mend=mend)
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UserError(f"weight = {weight!r}", where=f"{place}.weight", mend="give a number of at least 0")
        found.append(Seat(key, part, parts.check(part, settings, where=place), float(weight), place))
    return found


def named(kind: str, key: str, entry: dict[str, Any], *, where: str) -> parts.Part:
    """The part of an entry: what it names, else what its key names.

    Raises:
        UserError: there is none of that name.
    """
    if "name" in entry:
        return parts.find(kind, str(entry["name"]), where=f"{where}.name")
    try:
        return parts.find(kind, key, where=where)
    except UserError as error:
        if error.mend.startswith("known"):  # it is no slip of the pen
            raise UserError(error.what, where=where, mend=f"name the part: `name: ...`; {error.mend}") from None
        raise


def apart(first: Panel, second: Panel, *, where: str) -> None:
    """The second panel shares nobody with the first: no part with the same settings, whatever its key or weight.

    Raises:
        UserError: naming who sits in both, or whose key stands for two.
    """
    for kind in KINDS:
        taken = seats(first, kind)
        for seat in seats(second, kind, where=where):
            for other in taken:
                if (seat.part.name, seat.settings) == (other.part.name, other.settings):
                    mend = f"name another {kind}, or give it other settings"
                    raise UserError(f"'{seat.part.name}' made labels too", where=seat.where, mend=mend)
                if seat.key == other.key:
                    mend = f"give it a key of its own: `{seat.key}_too: {{name: {seat.part.name}, ...}}`"
                    raise UserError(f"'{seat.key}' is the key of another {kind} in label", where=seat.where, mend=mend)


def needs(panel: Panel, *, where: str = "params.yaml label") -> set[str]:
    """What the panel's parts need: a subset of `encoder`, `model`, `reward_model`."""
    return {need for seat in check(panel, where=where) for need in seat.part.spec.needs}
