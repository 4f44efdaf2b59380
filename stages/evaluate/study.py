"""How the rows of a sweep over axes are read: tables beside the start, average ranks, curves, start against start.

What a row is stands in study_rows.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from stages.evaluate.figures import png
from stages.evaluate.study_figures import draw_curves, draw_starts
from stages.evaluate.study_rows import (
    DASH,
    START,
    Row,
    at,
    gains,
    levels,
    mean_and_error,
    named,
    numbers,
    plain,
    scores,
)
from stages.evaluate.tables import COMPARED, number

PANELS = 4  # metrics that are drawn, the first of each skill
Skills = Mapping[str, Sequence[str]]


def write(rows: Sequence[Row], folder: Path, *, axes: Sequence[str], untrained: str | None, skills: Skills) -> Path:
    """Write `study.md` and its plots; returns the page.

    Args:
        rows: one an experiment.
        folder: where the files go.
        axes: columns of levels.
        untrained: the recipe whose rows are the starts.
        skills: metrics by what they tell; none for those that every comparison shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    asked = [metric for metrics in skills.values() for metric in metrics] or [*COMPARED]
    metrics = [metric for metric in asked if any(row.get(plain(metric)) is not None for row in rows)]
    missing = [metric for metric in asked if metric not in metrics] if skills else []
    parts = [table(rows, axes, untrained, metrics)]
    parts += [ranks_table(rows, axes, untrained, skills)] if skills else []
    parts += [f"Not measured: {', '.join(missing)}."] if missing else []
    heads = [next((m for m in own if m in metrics), None) for own in skills.values()] if skills else metrics
    shown = [metric for metric in heads if metric][:PANELS]
    for axis in axes:
        if shown and len(numbers(rows, axis)) > 1:
            name = f"study-{axis.replace('/', '-')}.png"
            png(draw_curves(rows, axis, untrained, shown), folder / name)
            parts.append(f"![Score against {axis}]({name})")
    if shown and len(levels(rows, START)) > 1:
        png(draw_starts(rows, untrained, shown), folder / "study-starts.png")
        parts.append("![Start against start](study-starts.png)")
    path = folder / "study.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def cell(values: Sequence[float], above: Sequence[float]) -> str:
    """A mean with its standard error, and in brackets the same of what it is above the start.

    >>> cell([1.0, 3.0], [1.0, 1.0]), cell([2.0], []), cell([], [])
    ('2.00 ± 1.00 (+1.00 ± 0.00)', '2.00', '–')
    """

    def told(found: Sequence[float], sign: str = "") -> str:
        mean, error = mean_and_error(found)
        return (sign if mean >= 0 else "") + number(mean) + (f" ± {number(error)}" if error is not None else "")

    if not values:
        return DASH
    return told(values) + (f" ({told(above, '+')})" if above else "")


def table(rows: Sequence[Row], axes: Sequence[str], untrained: str | None, metrics: Sequence[str]) -> str:
    """One table a start in Markdown: recipe and levels, against metrics; the start's own row comes first."""
    others = [axis for axis in axes if axis != START]
    pages = []
    for start in levels(rows, START) or [""]:
        here = at(rows, **{START: start}) if start else list(rows)
        starts = at(here, recipe=untrained) if untrained else []
        heads = ["Recipe", *others, "Seeds", *map(named, metrics)]
        lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * len(others) + "---:|" * (len(metrics) + 1)]
        for own in [starts] if starts else []:
            cells = [cell(scores(own, metric), []) for metric in metrics]
            lines.append(f"| {' | '.join([f'*{untrained}*', *[DASH for _ in others], str(len(own)), *cells])} |")
        for recipe, *at_levels in product(
            [recipe for recipe in levels(here, "recipe") if recipe != untrained], *(levels(rows, a) for a in others)
        ):
            own = at(here, recipe=recipe, **dict(zip(others, at_levels, strict=True)))
            cells = [cell(scores(own, metric), gains(own, starts, metric)) for metric in metrics]
            if own:
                lines.append(f"| {' | '.join([recipe, *at_levels, str(len(own)), *cells])} |")
        pages.append(f"### Start: {start}\n\n" * bool(start) + "\n".join(lines))
    note = "Mean ± standard error over seeds; in brackets what it is above the untrained start, paired by seed."
    return "\n\n".join([*pages, note])


def ranks(rows: Sequence[Row], axes: Sequence[str], untrained: str | None, metrics: Sequence[str]) -> dict[str, float]:
    """Average rank of each recipe, 1 the best, over all metrics and all cells of the axes.

    A cell's recipes are ranked by their means over seeds; equals share the mean of their places. A cell or metric that
    some recipe lacks is left out.

    >>> found = [{"recipe": "a", "seed": 0, "x": 1.0}, {"recipe": "b", "seed": 0, "x": 2.0}]
    >>> ranks(found, [], None, ["x"]), ranks(found, [], None, ["-x"])
    ({'a': 2.0, 'b': 1.0}, {'a': 1.0, 'b': 2.0})
    """
    trained = [row for row in rows if row["recipe"] != untrained]
    recipes = levels(trained, "recipe")
    found: list[list[float]] = []
    for metric, *chosen in product(metrics, *(levels(trained, axis) for axis in axes)):
        here = at(trained, **dict(zip(axes, chosen, strict=True)))
        own = [scores(at(here, recipe=recipe), metric) for recipe in recipes]
        if all(own):
            sign = -1 if metric.startswith("-") else 1
            means = [sign * float(np.mean(values)) for values in own]
            found.append([1 + sum(o > m for o in means) + (means.count(m) - 1) / 2 for m in means])
    return dict(zip(recipes, np.mean(found, axis=0).tolist(), strict=True)) if found else {}


def ranks_table(rows: Sequence[Row], axes: Sequence[str], untrained: str | None, skills: Skills) -> str:
    """Average ranks in Markdown: recipe against skill, the best over all skills first."""
    by_skill = {skill: ranks(rows, axes, untrained, metrics) for skill, metrics in skills.items()}
    found = {skill: own for skill, own in by_skill.items() if own}
    recipes = list(dict.fromkeys(recipe for own in found.values() for recipe in own))
    overall = {recipe: float(np.mean([own[recipe] for own in found.values()])) for recipe in recipes}
    lines = [f"| Recipe | {' | '.join([*found, 'all skills'])} |", "|---|" + "---:|" * (len(found) + 1)]
    for recipe in sorted(recipes, key=overall.__getitem__):
        cells = [number(own[recipe], 1) for own in found.values()] + [number(overall[recipe], 1)]
        lines.append(f"| {recipe} | {' | '.join(cells)} |")
    seeds = len(levels(rows, "seed"))
    alone = "" if seeds > 1 else " With one seed the order may be chance."
    return "### Average rank\n\n" + "\n".join(lines) + f"\n\nOf means over seeds, 1 is the best.{alone}"
