"""How the rows of a sweep over axes are read: tables beside the start, average ranks, curves, start against start.

A row is one experiment: `recipe`, `seed`, a level of each axis, metrics. The axis `start` says what training started
from; the rows of the untrained recipe are the starts themselves, and every other row is held against the one of its
start and seed. A metric with a minus before its name is one of which less is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from stages.evaluate.figures import FAINT, INK, STYLE, png
from stages.evaluate.tables import COMPARED, number

START, DASH = "start", "–"  # DASH: the level of an axis that changes nothing of a row
PANELS = 4  # metrics that are drawn, the first of each skill
Row = Mapping[str, Any]
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


def named(metric: str) -> str:
    """A metric as the head of a column."""
    return COMPARED.get(plain(metric), plain(metric)) + (" (less is better)" if metric.startswith("-") else "")


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


def curve(rows: Sequence[Row], axis: str, metric: str) -> list[tuple[float, float, float | None]]:
    """A metric along an axis of numbers: (level, mean, standard error) where there is any row."""
    found = []
    for level in sorted(levels(rows, axis), key=float):
        values = scores(at(rows, **{axis: level}), metric)
        if values:
            found.append((float(level), *mean_and_error(values)))
    return found


def draw_curves(rows: Sequence[Row], axis: str, untrained: str | None, metrics: Sequence[str]) -> Figure:
    """Metrics against an axis of numbers, a line a recipe, a row of panels a start; dashed, the start itself."""
    trained = [row for row in rows if row["recipe"] != untrained]
    xs, starts = numbers(rows, axis), levels(rows, START) or [""]
    figure, panels = grid(len(starts), len(metrics))
    for (i, start), (j, metric) in product(enumerate(starts), enumerate(metrics)):
        axes = panels[i][j]
        for recipe, colour in colours(trained).items():
            own = at(trained, recipe=recipe, **({START: start} if start else {}))
            points = curve(own, axis, metric)
            errors = [error or 0.0 for *_, error in points]
            places, means = [x for x, *_ in points], [mean for _, mean, _ in points]
            axes.errorbar(places, means, errors, color=colour, marker="o", markersize=4, linewidth=1.2, label=recipe)
        still = scores(at(rows, recipe=untrained, **({START: start} if start else {})), metric) if untrained else []
        if still:
            axes.axhline(float(np.mean(still)), color=FAINT, linestyle="--", linewidth=1, label=untrained)
        if xs[0] > 0 and xs[-1] >= 4 * xs[0]:
            axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.minorticks_off()
        axes.set_title(", ".join(filter(None, (named(metric), start))), loc="left", fontsize=10)
    figure.supxlabel(axis, fontsize=9, color=INK)
    panels[0][-1].legend(fontsize=7, frameon=False)
    return figure


def draw_starts(rows: Sequence[Row], untrained: str | None, metrics: Sequence[str]) -> Figure:
    """Each recipe's mean from each start, joined by a line: how much it needs its start."""
    recipes, starts = levels(rows, "recipe"), levels(rows, START)
    figure, panels = grid(1, len(metrics))
    for axes, metric in zip(panels[0], metrics, strict=True):
        for y, recipe in enumerate(recipes):
            own = [scores(at(rows, recipe=recipe, **{START: start}), metric) for start in starts]
            means = [float(np.mean(values)) for values in own if values]
            axes.plot(means, [y] * len(means), color=FAINT, linewidth=1, zorder=1)
        for start, colour in zip(starts, palette(), strict=False):
            for y, recipe in enumerate(recipes):
                values = scores(at(rows, recipe=recipe, **{START: start}), metric)
                if values:
                    label = start if y == 0 else None
                    axes.plot([float(np.mean(values))], [y], "o", color=colour, markersize=6, label=label)
        names = [f"{recipe} (the start)" if recipe == untrained else recipe for recipe in recipes]
        axes.set_yticks(range(len(recipes)), names if axes is panels[0][0] else [""] * len(names))
        axes.set_ylim(len(recipes) - 0.5, -0.5)
        axes.set_title(named(metric), loc="left", fontsize=10)
    panels[0][-1].legend(fontsize=7, frameon=False)
    return figure


def grid(rows: int, columns: int) -> tuple[Figure, Any]:
    """A figure of equal panels, an array of axes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((3.2 * columns + 0.6, 2.4 * rows + 0.5), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def palette() -> list[Any]:
    """Colours that are told apart, ten of them."""
    return list(matplotlib.colormaps["tab10"].colors)  # type: ignore[attr-defined]


def colours(rows: Sequence[Row]) -> dict[str, Any]:
    """A colour for each recipe, the same in all panels; they come again after ten."""
    recipes, known = levels(rows, "recipe"), palette()
    return {recipe: known[n % len(known)] for n, recipe in enumerate(recipes)}
