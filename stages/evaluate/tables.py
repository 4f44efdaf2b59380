"""Numbers for reading, CSV files, and the table that compares recipes over their seeds."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluate import figures

COMPARED = {
    "win_rate": "Win rate, %",
    "length_controlled_win_rate": "Length-controlled, %",
    "independent_win_rate": "Independent judge, %",
    "kl": "KL, nats",
    "surrogate_kl": "KL surrogate",
    "image_diversity": "Diversity",
    "hypervolume": "Hypervolume",
    "length": "Length, characters",
}


def number(value: Any, digits: int | None = None) -> str:
    """A number for reading: fixed decimals (2, none for a count), thin groups of thousands, a true minus.

    Anything else comes back as it is.

    >>> number(3.14159), number(0.00012), number(7), number("dpo")
    ('3.14', '0.00012', '7', 'dpo')
    >>> number(-1234.5, 1) == "\u22121\u2009234.5"
    True
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) and digits is None:
        text = f"{value:,}"
    else:
        digits = 2 if digits is None else digits
        tiny = value != 0 and abs(value) < 0.5 * 10**-digits
        text = f"{value:.2g}".replace("e-0", "e-") if tiny else f"{value:,.{digits}f}"
    return text.replace(",", "\u2009").replace("-", "\u2212")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows under the union of their keys, in order of appearance; an empty table gives an empty file."""
    rows = list(rows)
    with path.open("w", encoding="utf-8", errors="replace", newline="") as out:
        table = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)))
        if rows:
            table.writeheader()
        table.writerows(rows)


def comparison(rows: Sequence[Mapping[str, Any]], folder: Path, by: Sequence[str] = ("recipe",)) -> Path:
    """Compare settings over their seeds; returns `comparison.md`, beside `comparison.csv` (the rows) and `.png`.

    Args:
        rows: one a run: what `by` names, `seed`, and the keys of COMPARED as numbers; a missing or None value is left
            out.
        folder: where the three files go.
        by: what makes a setting, a column of each.

    A cell is mean \u00b1 standard deviation over seeds (ddof 1; the mean alone for one seed). Settings are ordered by
    mean win rate, the best first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "comparison.csv", rows)
    runs: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault(tuple(str(row[key]) for key in by), []).append(row)
    values = {
        setting: {key: [row[key] for row in own if row.get(key) is not None] for key in COMPARED}
        for setting, own in runs.items()
    }
    settings = sorted(runs, key=lambda setting: -np.mean(values[setting]["win_rate"] or [-np.inf]))
    shown = [key for key in COMPARED if any(values[setting][key] for setting in settings)]
    heads = [*(key.capitalize() if key == "recipe" else key for key in by), "Seeds", *(COMPARED[key] for key in shown)]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(by) - 1) + "---:|" * (len(shown) + 1)]
    for setting in settings:
        cells = [mean_and_spread(values[setting][key]) for key in shown]
        lines.append(f"| {' | '.join([*setting, str(len(runs[setting])), *cells])} |")
    path = folder / "comparison.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if shown:
        columns = {COMPARED[key]: [values[setting][key] for setting in settings] for key in shown}
        figures.png(figures.dots([", ".join(setting) for setting in settings], columns), folder / "comparison.png")
    return path


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation for reading.

    >>> mean_and_spread([1.0, 3.0]), mean_and_spread([2.0]), mean_and_spread([])
    ('2.00 \u00b1 1.41', '2.00', '\u2013')
    """
    if not values:
        return "\u2013"
    spread = f" \u00b1 {number(float(np.std(values, ddof=1)))}" if len(values) > 1 else ""
    return number(float(np.mean(values))) + spread
