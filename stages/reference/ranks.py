"""How the reference itself ranks what is labelled, before any training: see stages/ranking.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages import feed, ranking
from stages.cached import Cache
from stages.feed import Example
from stages.records import Pair, Ranking


def summary(cache: Cache, labels: Sequence[Example], draws: int) -> dict[str, float]:
    """Of pairs its accuracy, the idealized one and quartiles of difficulty; of rankings the share told in full.

    Args:
        cache: log-probs under the reference.
        labels: pairs, singles or rankings; singles say nothing.
        draws: of each label, whose mean is taken.
    """
    rankings = [label for label in labels if isinstance(label, Ranking)]
    if rankings:
        return {"exact": ranking.exact([_summed(cache, label, draws) for label in rankings])}
    pairs = [label for label in labels if isinstance(label, Pair)]
    if not pairs:
        return {}
    sums = np.array([_summed(cache, pair, draws) for pair in pairs])
    steps = np.array([[max(1, len(cache[item.id])) for item in feed.items(pair)] for pair in pairs])
    return ranking.told(sums[:, 0], sums[:, 1], steps[:, 0], steps[:, 1], np.array([pair.prob for pair in pairs]))


def difficulty(cache: Cache, labels: Sequence[Example], draws: int) -> dict[str, float]:
    """By id, by how many nats the reference prefers the rejected answer of each pair, R_l - R_w, hardest first.

    Below 0 the reference ranks the pair right already.
    """
    pairs = [label for label in labels if isinstance(label, Pair)]
    sums = [_summed(cache, pair, draws) for pair in pairs]
    found = {pair.id: rejected - chosen for pair, (chosen, rejected) in zip(pairs, sums)}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _summed(cache: Cache, example: Example, draws: int) -> list[float]:
    """Log-prob of each completion of an example, the mean over its draws."""
    each = [[float(cache.of(item).sum()) for item in feed.items(example, draw)] for draw in range(draws)]
    return [float(value) for value in np.mean(each, axis=0)]
