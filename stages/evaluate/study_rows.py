"""The rows of a study: their levels, and what a metric is of some of them.

A row is one experiment: `recipe`, `seed`, a level of each axis, metrics. The axis `start` says what training started
from; the rows of the untrained recipe are the starts themselves, and every other row is held against the one of its
start and seed. A metric with a minus before its name is one of which less is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.evaluate.tables import COMPARED

START, DASH = "start", "–"  # DASH: the level of an axis that changes nothing of a row
Row = Mapping[str, Any]


def plain(metric: str) -> str:
    """A metric's key in a row."""
    return metric.removeprefix("-")


def levels(rows: Sequence[Row], axis: str) -> list[str]:
    """The levels of an axis, in order of appearance; none where no row has it."""
    return list(dict.fromkeys(str(row[axis]) for row in rows if row.get(axis, DASH) != DASH))


def numbers(rows: Sequence[Row], axis: str) -> list[float]:
    """The levels of an axis as numbers, in their order; none where one is no number."""
    try:
        return sorted(float(level) for level in levels(rows, axis))
    except ValueError:
        return []


def at(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows that have these values; levels are compared as text."""
    return [row for row in rows if all(str(row.get(key)) == str(value) for key, value in wanted.items())]


def scores(rows: Sequence[Row], metric: str) -> list[float]:
    """A metric of the rows that have it."""
    return [float(row[plain(metric)]) for row in rows if row.get(plain(metric)) is not None]


def gains(rows: Sequence[Row], starts: Sequence[Row], metric: str) -> list[float]:
    """What each row is above its own start, the one of its seed and `start`; none of a row without one.

    >>> gains([{"seed": 0, "kl": 3.0}, {"seed": 1, "kl": 5.0}], [{"seed": 1, "kl": 1.0}], "kl")
    [4.0]
    """
    pairs = [(row, at(starts, seed=row["seed"], **{k: row[k] for k in (START,) if k in row})) for row in rows]
    both = [(scores([row], metric), scores(own, metric)) for row, own in pairs]
    return [ours[0] - theirs[0] for ours, theirs in both if ours and theirs]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and its standard error where there are several values.

    >>> mean_and_error([1.0, 3.0]), mean_and_error([2.0])
    ((2.0, 1.0), (2.0, None))
    """
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return float(np.mean(values)), error


def named(metric: str) -> str:
    """A metric as the head of a column."""
    return COMPARED.get(plain(metric), plain(metric)) + (" (less is better)" if metric.startswith("-") else "")
