"""Score: what a reward says of the policy and of the baseline, and of the difference, each with its interval."""

from collections.abc import Sequence

import numpy as np

from stages.evaluate.metrics._rows import Confidence, Floats, Rows, spread
from stages.parts import part


@part(needs=("scores",), range=(-np.inf, np.inf))
class Score:
    """Mean score over prompts, in the reward's own unit.

        score      = mean(s)          s: mean score of a prompt's answers by the policy
        base       = mean(b)          b: the same of the baseline
        difference = mean(s - b)      paired by prompt: what a prompt's difficulty adds to both sides cancels

    `lower` .. `upper` is a normal interval over prompts, as are `base/lower` .. and `difference/lower` .. Prompts are
    the unit: several answers to one prompt narrow its mean and do not count as more prompts.

    Args:
        confidence: coverage of the three intervals, left out for one row.

    `update` takes `score` and `base_score` `[n]`, one row a prompt. The evaluate stage runs it once for each reward, of
    the labelling panel and of the independent one, and reports `score/<reward>`.

    >>> metric = Score()
    >>> metric.update(score=[3.0, 5.0], base_score=[1.0, 3.0])
    >>> {key: round(value, 2) for key, value in metric.compute().items()}  # doctest: +NORMALIZE_WHITESPACE
    {'score': 4.0, 'lower': 2.04, 'upper': 5.96, 'base': 2.0, 'base/lower': 0.04, 'base/upper': 3.96,
     'difference': 2.0, 'difference/lower': 2.0, 'difference/upper': 2.0}
    """

    def __init__(self, *, confidence: Confidence = 0.95) -> None:
        self.confidence = confidence
        self.rows = Rows("score")

    def update(self, score: Sequence[float], base_score: Sequence[float]) -> None:
        """Add rows."""
        self.rows.add(score=score, base_score=base_score)

    def compute(self) -> dict[str, float]:
        """Both means and their difference, with intervals."""
        score, base = self.rows["score"], self.rows["base_score"]
        found = {"score": float(score.mean()), **self._ends(score)}
        for name, values in {"base": base, "difference": score - base}.items():
            found |= {name: float(values.mean()), **{f"{name}/{k}": v for k, v in self._ends(values).items()}}
        return found

    def _ends(self, values: Floats) -> dict[str, float]:
        ends = spread(values, self.confidence)
        return {key: ends[key] for key in ("lower", "upper") if key in ends}
