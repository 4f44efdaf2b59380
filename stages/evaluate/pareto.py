"""Fronts: what several policies, or one policy told several directions, gain of rewards that pull apart.

    python -m stages.evaluate.pareto RUN RUN ... --rewards relevance --rewards length

reads the evaluate stage of each run, one point for each direction that its held-out prompts state, and writes
front.json (the points, which of them no other is better than, the hypervolume) and, of two rewards, front.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from stages import declared, entry, files, labelling, records
from stages.errors import UserError
from stages.evaluate import figures
from stages.evaluate.fronts import Point, angle, draw, front, hypervolume
from stages.parts import Spec
from stages.records import Candidate, Prompt

ANSWERS, PROMPTS = Path("data/evaluate/answers.jsonl"), Path("data/prepare/test.jsonl")


def points(folder: Path, rewards: Sequence[str]) -> list[Point]:
    """What the final policy of a run gained, for each direction that its held-out prompts state.

    Raises:
        UserError: the run was not evaluated, or its answers lack one of the rewards.
    """
    final = {c.id: c for c in records.read(folder / ANSWERS, Candidate)}  # of all policies the final one is last
    angles = {p.id: angle(p, rewards) for p in records.read(folder / PROMPTS, Prompt)}
    specs, found = declared.read(folder / declared.FILE), []
    ordered = sorted(final.values(), key=lambda c: (angles[c.prompt] is not None, angles[c.prompt] or 0.0))
    for at, group in groupby(ordered, key=lambda c: angles[c.prompt]):
        own = list(group)
        found.append(Point(folder.resolve().name, at, tuple(mean(own, reward, specs, folder) for reward in rewards)))
    return found


def mean(answers: Sequence[Candidate], reward: str, specs: Mapping[str, Spec], folder: Path) -> float:
    """The mean of a reward over the answers that it says something of, on the scale of 0 to 1.

    Raises:
        UserError: it says something of none.
    """
    told = [c.scores[reward] for c in answers if reward in specs and reward in c.scores]
    if not told:
        where, mend = str(folder / ANSWERS), f"name one of {', '.join(sorted({n for c in answers for n in c.scores}))}"
        raise UserError(f"no answer has a score '{reward}'", where=where, mend=mend)
    return sum(labelling.unit(specs[reward], score) for score in told) / len(told)


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
        figures.png(draw(found, rewards), out / "front.png")
    print(json.dumps(told["hypervolume_of"]))


if __name__ == "__main__":
    typer.run(main)
