"""Expected calibration error: predictions in bins of equal width, each bin's mean held against that of its labels."""

import numpy as np

from stages.evaluate.metrics._rows import Floats


def bins(predicted: Floats, label: Floats, count: int) -> list[dict[str, float]]:
    """The reliability diagram: for each bin with rows its edges, `predicted` and `label` means, and `count`."""
    home = np.minimum((predicted * count).astype(int), count - 1)
    return [
        {
            "lower": index / count,
            "upper": (index + 1) / count,
            "predicted": float(predicted[home == index].mean()),
            "label": float(label[home == index].mean()),
            "count": int((home == index).sum()),
        }
        for index in np.unique(home).tolist()
    ]


def ece(predicted: Floats, label: Floats, count: int) -> float:
    """Mean over rows of |mean label - mean prediction| of their bin (Guo et al. 2017, arXiv 1706.04599, equation 3).

    >>> round(ece(np.array([0.9, 0.7, 0.2]), np.array([1.0, 0.0, 0.0]), 2), 4)  # 2/3 * 0.3 + 1/3 * 0.2
    0.2667
    """
    table = bins(predicted, label, count)
    return sum(row["count"] * abs(row["label"] - row["predicted"]) for row in table) / len(predicted)


def both_orders(prob: Floats) -> Floats:
    """Every pair told in either order: chosen is always the better side, so in one order no model looks calibrated."""
    return np.concatenate([prob, 1 - prob])
