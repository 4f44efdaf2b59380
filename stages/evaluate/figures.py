"""Figures of the report: drawn once, kept as inline SVG in the page's own colours and as PNG for other viewers."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, ACCENT, FAINT = "#1c1e21", "#2f6fde", "#9aa0a8"
PAGE = {INK: "currentColor", ACCENT: "var(--accent)", FAINT: "var(--faint)"}  # so that one SVG suits light and dark
STYLE: Any = {
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "svg.fonttype": "none",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]  # left, bottom, right, top
NATS = "KL from the reference, nats per answer"
POINTS = 200  # of a curve; longer ones are averaged in equal runs of steps


def canvas(width: float = 4.4, height: float = 3.0) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes, in inches; small, so that its text keeps its size on a phone."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        return figure, figure.add_subplot()


def inline(figure: Figure, name: str, label: str) -> Markup:
    """A figure as an SVG element for HTML: no header, no metadata, its own ids, the page's colours."""
    out = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL
    )
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, in_page in PAGE.items():
        svg = svg.replace(colour, in_page)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{Markup.escape(label)}"', 1))


def png(figure: Figure, path: Path) -> Path:
    """The same figure as a file on white."""
    figure.savefig(path, dpi=160, facecolor="white")
    return path


def frontier(
    names: Sequence[str],
    kl: Sequence[float],
    value: Sequence[float],
    title: str,
    ends: Sequence[tuple[float, float]] | None = None,
    far: str = NATS,
) -> Figure:
    """Policies in pipeline order over their distance from the reference: what was gained for it.

    `ends` are the intervals' lower and upper ends, `far` names the distance and its unit.
    """
    figure, axes = canvas()
    axes.plot(kl, value, color=FAINT, linewidth=1, zorder=1)
    axes.plot(kl, value, "o", color=ACCENT, markersize=6)
    if ends:
        axes.vlines(kl, *zip(*ends), color=ACCENT, linewidth=1.2)
    span = (max(kl) - min(kl)) or 1.0
    axes.set_xlim(min(kl) - 0.08 * span, max(kl) + 0.22 * span)
    axes.margins(y=0.2)
    axes.set_xlabel(far)
    axes.set_title(title, loc="left", fontsize=10)
    lines = [list(zip(kl, value)), *([(x, low), (x, high)] for x, (low, high) in zip(kl, ends or []))]
    figure.draw_without_rendering()  # fixes the scales that the names are placed by
    name_points(axes, names, list(zip(kl, value)), lines)
    return figure


def name_points(axes: Axes, names: Sequence[str], points: Points, lines: Sequence[Points]) -> None:
    """Write each name beside its point, at the first of twelve places that no line and no earlier name takes."""

    def on_page(data: Points) -> np.ndarray:  # in typographic points
        return axes.transData.transform(np.asarray(data, float)) * 72 / axes.figure.dpi

    taken = [_box(x, y, 3) for line in lines for x, y in _along(on_page(line))]
    edge = axes.get_window_extent().x0 * 72 / axes.figure.dpi
    taken.append((-math.inf, -math.inf, edge, math.inf))  # the scale of y
    for name, at, (x, y) in zip(names, points, on_page(points)):
        width = 5.2 * len(name)
        lefts, ups = (6, -6 - width), (5, -13, 17, -25, 29, -37)
        boxes = [(x + left, y + up, x + left + width, y + up + 9) for up in ups for left in lefts]
        free = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])
        taken.append(free)
        axes.annotate(name, at, (free[0] - x, free[1] - y), textcoords="offset points", color=INK, fontsize=9)


def _along(line: np.ndarray) -> np.ndarray:
    """Places along a line, close enough that no name fits between them."""
    return np.concatenate([np.linspace(one, other, 60) for one, other in zip(line, line[1:])] or [line])


def _box(x: float, y: float, reach: float) -> Box:
    return x - reach, y - reach, x + reach, y + reach


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def curve(points: Points, title: str) -> Figure:
    """One training curve of (step, value)."""
    figure, axes = canvas(3.0, 1.9)
    axes.plot(*thin(points).T, color=ACCENT, linewidth=1.4, marker="o" if len(points) == 1 else "")
    axes.set_title(title, loc="left", fontsize=10)
    axes.locator_params(nbins=4)
    return figure


def thin(points: Points) -> np.ndarray:
    """At most POINTS points, each the mean of a run of the same size: `[n,2]`. The last run may be shorter.

    >>> thin([(step, 1.0) for step in range(400)])[:2].tolist()
    [[0.5, 1.0], [2.5, 1.0]]
    """
    size = math.ceil(len(points) / POINTS)
    return np.array([np.mean(points[start : start + size], axis=0) for start in range(0, len(points), size)])


def dots(names: Sequence[str], columns: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """One panel a column: for each name its values (one a seed) and their mean. Names run downwards."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((2.9 * len(columns) + 1.2, 0.36 * len(names) + 1.1), layout="constrained")
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(panels, columns.items()):
        for row, seeds in enumerate(values):
            axes.plot(seeds, [row] * len(seeds), "o", color=FAINT, markersize=4)
            if len(seeds):
                axes.plot([np.mean(seeds)], [row], "D", color=ACCENT, markersize=6)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="y", color=FAINT, alpha=0.3)
        axes.locator_params(axis="x", nbins=5)
    figure.supxlabel("grey: one seed, blue: mean", fontsize=8, color=INK)
    return figure
