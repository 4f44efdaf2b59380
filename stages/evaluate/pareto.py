"""Fronts: what several policies, or one policy told several directions, gain of rewards that pull apart.

    python -m stages.evaluate.pareto RUN RUN ... --rewards relevance --rewards length

reads the evaluate stage of each run, one point for each direction that its held-out prompts state, and writes
front.json (the points, which of them no other is better than, the hypervolume) and, of two rewards, front.png.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from stages import directions, entry, files, labelling, panel, records
from stages.errors import UserError
from stages.records import Candidate, Prompt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ANSWERS, PROMPTS = Path("data/evaluate/answers.jsonl"), Path("data/prepare/test.jsonl")
REWARDS = Path("data/label/rewards.json")
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


def points(folder: Path, rewards: Sequence[str]) -> list[Point]:
    """What the final policy of a run gained, for each direction that its held-out prompts state.

    Raises:
        UserError: the run was not evaluated, or its answers lack one of the rewards.
    """
    final = {c.id: c for c in records.read(folder / ANSWERS, Candidate)}  # of all policies the final one is last
    angles = {p.id: angle(p, rewards) for p in records.read(folder / PROMPTS, Prompt)}
    found = []
    ordered = sorted(final.values(), key=lambda c: (angles[c.prompt] is not None, angles[c.prompt] or 0.0))
    for at, group in groupby(ordered, key=lambda c: angles[c.prompt]):
        own = list(group)
        found.append(Point(folder.resolve().name, at, tuple(mean(own, reward, folder) for reward in rewards)))
    return found


def angle(prompt: Prompt, rewards: Sequence[str]) -> float | None:
    """Degrees from the first of the rewards to the second that the prompt states, rounded to halves."""
    v = directions.stated(prompt.messages)
    if not v:
        return None
    first, second = (v.get(name, 0.0) for name in rewards[:2])
    return round(2 * math.degrees(math.atan2(second, first))) / 2


def mean(answers: Sequence[Candidate], reward: str, folder: Path) -> float:
    """The mean of a reward over the answers that it says something of, on the scale of 0 to 1.

    Raises:
        UserError: it says something of none.
    """
    specs = panel.read_declared(folder / REWARDS)
    said = [labelling.unit(specs[reward], c.scores[reward]) for c in answers if reward in specs and reward in c.scores]
    if not said:
        where, mend = str(folder / ANSWERS), f"name one of {', '.join(sorted({n for c in answers for n in c.scores}))}"
        raise UserError(f"no answer has a score '{reward}'", where=where, mend=mend)
    return sum(said) / len(said)


def draw(found: Sequence[Point], rewards: Sequence[str]) -> Figure:
    """The points of two rewards, those of one run joined in the order of their angles, the front in blue."""
    from stages.evaluate import figures  # late: matplotlib

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


def summary(found: Sequence[Point], rewards: Sequence[str]) -> dict[str, object]:
    """What front.json holds."""
    values = [point.values for point in found]
    rows = [
        {"name": p.name, "run": p.run, "angle": p.angle, **dict(zip(rewards, p.values)), "front": on}
        for p, on in zip(found, front(values), strict=True)
    ]
    runs = {run: [p.values for p in group] for run, group in groupby(found, key=lambda p: p.run)}
    floor = [0.0] * len(rewards)
    return {
        "rewards": list(rewards),
        "points": rows,
        "hypervolume": hypervolume(values, floor),
        "hypervolume_of": {run: hypervolume(own, floor) for run, own in runs.items()},
    }


def main(
    runs: Annotated[list[Path], typer.Argument(help="Folders that were run to the evaluate stage.")],
    rewards: Annotated[list[str], typer.Option(help="Two rewards or more, each by `--rewards NAME`.")],
    out: Annotated[Path, typer.Option(help="Where front.json and front.png are written.")] = Path("front"),
) -> None:
    """Find the front of some runs."""
    entry.quiet_libraries()
    try:
        if len(set(rewards)) < 2 or len(set(rewards)) < len(rewards):
            raise UserError(f"{', '.join(rewards)}", where="--rewards", mend="name two different rewards or more")
        found = [point for folder in runs for point in points(folder, rewards)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    out.mkdir(parents=True, exist_ok=True)
    told = summary(found, rewards)
    files.write_json(out / "front.json", told)
    if len(rewards) == 2:
        from stages.evaluate import figures

        figures.png(draw(found, rewards), out / "front.png")
    print(json.dumps(told["hypervolume_of"]))


if __name__ == "__main__":
    typer.run(main)
