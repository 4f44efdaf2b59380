"""Fronts of rewards that pull apart: which points are on them, what they enclose, and how they look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from stages import directions, labelling
from stages.evaluate import figures
from stages.parts import Spec
from stages.records import Candidate, Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = Sequence[Sequence[float]]  # [n,m] of n policies and m rewards, more is better


@dataclass(frozen=True)
class Point:
    """A policy, or a policy told one direction, and the mean of each reward over its answers."""

    run: str
    angle: float | None  # degrees from the first reward to the second that its prompts stated, if they stated any
    values: tuple[float, ...]  # each on the scale where 0 is a reward's worst and 1 its best

    @property
    def name(self) -> str:
        """The run, and the angle where there is one."""
        return self.run if self.angle is None else f"{self.run} {self.angle:g}"


def front(values: Values) -> list[bool]:
    """Which rows no other row is better than: at least as good in every reward and better in one.

    >>> front([[0.9, 0.1], [0.5, 0.5], [0.4, 0.5], [0.1, 0.8]])
    [True, True, False, True]
    """
    table = np.asarray(values, float)
    no_worse = (table[:, None] >= table[None]).all(-1)  # [i,j] row i is no worse than row j
    better = (table[:, None] > table[None]).any(-1)
    beaten: np.ndarray = np.any(no_worse & better, axis=0)  # [j] by some i
    return [not each for each in beaten]


def hypervolume(values: Values, floor: Sequence[float]) -> float:
    """What share of the space above `floor` some row is at least as good as: its area for two rewards.

    Rows that are below the floor in a reward add nothing.

    >>> round(hypervolume([[0.5, 0.5], [0.8, 0.2]], [0.0, 0.0]), 2)
    0.31
    """
    from pymoo.indicators.hv import HV  # late: it is slow to import, and only fronts need it

    return float(HV(ref_point=-np.asarray(floor, float))(-np.asarray(values, float)))


def angle(prompt: Prompt, rewards: Sequence[str]) -> float | None:
    """Degrees from the first of the rewards to the second that the prompt states, rounded to halves."""
    v = directions.stated(prompt.messages)
    if not v:
        return None
    first, second = (v.get(name, 0.0) for name in rewards[:2])
    return round(2 * math.degrees(math.atan2(second, first))) / 2


def columns(
    prompts: Sequence[Prompt],
    final: Sequence[Candidate],
    base: Sequence[Candidate],
    rewards: tuple[str, str],
    specs: Mapping[str, Spec],
) -> dict[str, list[float]]:
    """The columns that `hypervolume` takes: a row an answer that both rewards say something of, and the base's beside.

    Args:
        prompts: the held-out ones.
        final: answers of the final policy, scored.
        base: the base model's, in the same order.
        rewards: keys of the two.
        specs: what the rewards declare, by key.

    Returns:
        `direction` in degrees, 0 where the prompt states none; `first`, `second`, `base_first`, `base_second` on the
        scale where 0 is a reward's worst and 1 its best.
    """
    angles = {prompt.id: angle(prompt, rewards) or 0.0 for prompt in prompts}
    told: dict[str, list[float]] = {name: [] for name in ("direction", "first", "second", "base_first", "base_second")}
    for one, other in zip(final, base, strict=True):
        if all(key in side.scores for key in rewards for side in (one, other)):
            told["direction"].append(angles[one.prompt])
            for prefix, side in (("", one), ("base_", other)):
                for place, key in zip(("first", "second"), rewards):
                    told[prefix + place].append(labelling.unit(specs[key], side.scores[key]))
    return told


def points(columns: Mapping[str, Sequence[float]], prefix: str = "", name: str = "") -> list[Point]:
    """The mean of both rewards in each direction, by the angle; of the base model with the prefix `base_`.

    >>> points({"direction": [0, 45, 0], "first": [0.5, 0.2, 0.7], "second": [0.5, 0.9, 0.1]})[0].values
    (0.6, 0.3)
    """
    rows = sorted(zip(columns["direction"], columns[f"{prefix}first"], columns[f"{prefix}second"], strict=True))
    found = []
    for at, group in groupby(rows, key=lambda row: row[0]):
        first, second = np.array([row[1:] for row in group]).mean(0).tolist()
        found.append(Point(name, at, (first, second)))
    return found if len(found) > 1 else [Point(p.run, None, p.values) for p in found]


def draw(found: Sequence[Point], rewards: Sequence[str]) -> Figure:
    """The points of two rewards, those of one run joined in the order of their angles, the front in blue."""
    figure, axes = figures.canvas(5.2, 4.0)
    best = front([point.values for point in found])
    lines = [[p.values for p in group] for _, group in groupby(found, key=lambda p: p.run)]
    for line in lines:
        axes.plot(*zip(*line), color=figures.FAINT, linewidth=1, zorder=1)
    for point, on in zip(found, best, strict=True):
        axes.plot(*point.values, "o", color=figures.ACCENT if on else figures.FAINT, markersize=6)
    axes.margins(0.2)
    axes.set_xlabel(rewards[0])
    axes.set_title(f"{rewards[1]} over {rewards[0]}: the front in blue", loc="left", fontsize=10)
    figure.draw_without_rendering()
    figures.name_points(axes, [p.name for p in found], [p.values[:2] for p in found], lines)  # type: ignore[misc,arg-type]
    return figure
