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

TOOLS = {"encoder": "encoder", "model": "policy", "reward_model": "scorer"}  # need -> field of Tools and parameter


class Panel(Config):
    """Who scores and who judges, by part name, and how sharply scores become probabilities.

    Each entry is `{weight: float, **settings of the part}`. The weight is 1 where it is absent; 0 records a score
    without letting it decide.
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
    found = [*seats(panel, "reward", where=where), *seats(panel, "judge", where=where)]
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
    for name, entry in getattr(panel, f"{kind}s").items():
        place = f"{where}.{kind}s.{name}"
        part = parts.find(kind, name, where=place)
        settings = {key: value for key, value in entry.items() if key != "weight"}
        for key in settings:
            if key not in part.settings:
                mend = nearest(key, [*part.settings, "weight"])
                raise UserError(f"{kind} '{name}' has no setting '{key}'", where=place, mend=mend)
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise UserError(f"weight = {weight!r}", where=f"{place}.weight", mend="give a number of at least 0")
        found.append(Seat(part, parts.check(part, settings, where=place), float(weight), place))
    return found


def needs(panel: Panel, *, where: str = "params.yaml label") -> set[str]:
    """What the panel's parts need: a subset of `encoder`, `model`, `reward_model`."""
    return {need for seat in check(panel, where=where) for need in seat.part.spec.needs}
