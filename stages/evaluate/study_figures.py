"""The plots of a study: metrics along an axis of numbers, and start against start."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from stages.evaluate.figures import FAINT, INK, STYLE
from stages.evaluate.study_rows import START, Row, at, levels, mean_and_error, named, numbers, scores


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
