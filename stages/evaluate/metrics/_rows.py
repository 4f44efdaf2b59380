"""What all metrics share: the columns seen so far, and intervals around a mean.

A metric keeps its rows and computes at the end, so that many small updates are exactly one big one and two halves
merge by appending. Held-out sets have hundreds of rows, so memory is no concern.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.stats import norm

from stages.errors import UserError

Confidence = Annotated[float, Field(gt=0, lt=1)]
Floats = NDArray[np.float64]


class Rows:
    """Columns of equal length that grow with each `add`.

    >>> rows = Rows("win_rate")
    >>> rows.add(prob=[1.0]); rows.add(prob=[0.0, 0.5])
    >>> rows["prob"]
    array([1. , 0. , 0.5])
    """

    def __init__(self, metric: str) -> None:
        self.metric, self.columns = metric, dict[str, list]()

    def add(self, **columns: Sequence[Any]) -> None:
        """Append rows.

        Raises:
            UserError: columns of unequal length, or a number that is not finite.
        """
        sizes = {name: len(values) for name, values in columns.items()}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise UserError(
                f"columns of unequal length: {told}", where=self._where, mend="give each column one value a row"
            )
        for name, values in columns.items():
            if not all(isinstance(value, str) or np.isfinite(value) for value in values):
                raise UserError(
                    f"'{name}' has a value that is not finite", where=self._where, mend="drop or score that row"
                )
            self.columns.setdefault(name, []).extend(values)

    def __getitem__(self, name: str) -> Floats:
        """A column of numbers as float64."""
        return np.asarray(self.texts(name), np.float64)

    def texts(self, name: str) -> list:
        """A column as it came.

        Raises:
            UserError: no row was added.
        """
        if not self.columns.get(name):
            raise UserError("no rows to measure", where=self._where, mend="evaluate on at least one held-out row")
        return self.columns[name]

    @property
    def _where(self) -> str:
        return f"metric {self.metric}"


class OfPairs:
    """What metrics of held-out pairs take: their log-probs under both policies, and how they were labelled."""

    def __init__(self, metric: str) -> None:
        self.rows = Rows(metric)

    def update(
        self,
        chosen_logp: Sequence[float],
        rejected_logp: Sequence[float],
        chosen_ref: Sequence[float],
        rejected_ref: Sequence[float],
        chosen_steps: Sequence[int],
        rejected_steps: Sequence[int],
        pair_prob: Sequence[float],
    ) -> None:
        """Add rows."""
        self.rows.add(
            chosen_logp=chosen_logp,
            rejected_logp=rejected_logp,
            chosen_ref=chosen_ref,
            rejected_ref=rejected_ref,
            chosen_steps=chosen_steps,
            rejected_steps=rejected_steps,
            pair_prob=pair_prob,
        )


def spread(values: Floats, confidence: float) -> dict[str, float]:
    """Standard error of the mean (ddof 1) and its normal interval; for one row, which has no spread, nothing.

    >>> {key: round(value, 3) for key, value in spread(np.array([1.0, 3.0]), 0.95).items()}
    {'standard_error': 1.0, 'lower': 0.04, 'upper': 3.96}
    """
    if len(values) < 2:
        return {}
    error, mean = float(values.std(ddof=1) / np.sqrt(len(values))), float(values.mean())
    reach = float(norm.isf((1 - confidence) / 2)) * error
    return {"standard_error": error, "lower": mean - reach, "upper": mean + reach}


def wilson(mean: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion, both ends in 0..1.

    >>> [round(end, 4) for end in wilson(0.5, 10, 0.95)]
    [0.2366, 0.7634]
    """
    z = float(norm.isf((1 - confidence) / 2))
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * np.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    lower, upper = float(centre - reach), float(centre + reach)
    return max(0.0, min(mean, lower)), min(1.0, max(mean, upper))  # rounding must not cut the mean off at 0 and 1
