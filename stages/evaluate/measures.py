"""From the columns of the evaluation table to numbers: every metric that was asked for, and the gate's verdict."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from stages import parts
from stages.config import Config


class Gate(Config):
    """What a policy must show before the alias `champion` moves to it."""

    min_win_rate_lower: Annotated[float, Field(ge=0, le=100)] = 50.0  # percent, lower end of the 95% interval
    max_kl: Annotated[float, Field(gt=0)] = 100.0  # nats an answer
    max_surrogate_kl: Annotated[float, Field(gt=0)] = 1.0  # images: of one priced step, see metrics/surrogate_kl.py
    max_repetition: Annotated[float, Field(ge=0, le=1)] = 0.3


def check(wanted: Mapping[str, dict[str, Any]], family: str, *, where: str = "params.yaml evaluate.metrics") -> None:
    """Every metric exists, takes its settings and fits the family.

    Raises:
        UserError: naming the first that does not.
    """
    for name, settings in wanted.items():
        place = f"{where}.{name}"
        found = parts.find("metric", name, where=place)
        parts.fits(found, family, where=place)
        parts.check(found, settings, where=place)


def measure(wanted: Mapping[str, dict[str, Any]], columns: Mapping[str, Any]) -> dict[str, float]:
    """Every metric on its columns; `metric` is its main value, `metric/key` the others."""
    numbers: dict[str, float] = {}
    for name, settings in wanted.items():
        found = parts.find("metric", name)
        for label, data in takes(found, columns).items():
            metric = found.function(**parts.check(found, settings))
            metric.update(**data)
            told = metric.compute()
            numbers[label] = told.pop(name)
            numbers |= {f"{label}/{key}": value for key, value in told.items()}
    return numbers


def takes(metric: parts.Part, columns: Mapping[str, Any]) -> dict[str, dict[str, Sequence[Any]]]:
    """What a metric is taken of, by the name of the result: the columns that its `update` names, none if one is empty.

    The win rate is taken of the independent judges' column too, the score of every reward.
    """
    if metric.name == "score":
        return {f"score/{reward}": sides for reward, sides in columns.get("scores", {}).items() if sides["score"]}
    named = list(inspect.signature(metric.function.update).parameters)[1:]  # type: ignore[attr-defined]
    if not all(len(columns.get(key, ())) for key in named):
        return {}
    independent = {"independent_win_rate": {"prob": columns["independent"]}} if metric.name == "win_rate" else {}
    return {metric.name: {key: columns[key] for key in named}, **independent}


def gate(limits: Gate, numbers: Mapping[str, float]) -> list[str]:
    """Reasons against the policy; none lets it become the champion."""
    reasons = [] if "win_rate" in numbers else ["nobody on the labelling panel judges the policy's own answers"]
    if (lower := numbers.get("win_rate/lower", 100.0)) <= limits.min_win_rate_lower:
        reasons.append(f"the win rate's lower bound is {lower:.1f}%, not above {limits.min_win_rate_lower:g}%")
    if (kl := numbers.get("kl", 0.0)) > limits.max_kl:
        reasons.append(f"KL is {kl:.1f} nats an answer, above {limits.max_kl:g}")
    if (surrogate := numbers.get("surrogate_kl", 0.0)) > limits.max_surrogate_kl:
        reasons.append(f"the KL surrogate is {surrogate:.3g}, above {limits.max_surrogate_kl:g}")
    if (repeats := numbers.get("diversity/repetition", 0.0)) > limits.max_repetition:
        reasons.append(f"{repeats:.0%} of the 4-grams repeat, above {limits.max_repetition:.0%}")
    return reasons
