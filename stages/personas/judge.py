"""A small judge of personas: does a statement matter to a question, and what does an answer do to it.

Two logistic regressions on sentence embeddings, trained when they are first asked, in seconds and always to the same
weights, on the examples of `world`. Held-out people, values, questions and answers tell how good they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stages.personas import world

if TYPE_CHECKING:
    import numpy as np

SCALE, STRENGTH = 10.0, 0.03  # of the features; inverse strength of the regression's penalty


class Judge:
    """The two trained classifiers and the encoder whose vectors they read."""

    def __init__(self, encoder: Any) -> None:
        from sklearn.linear_model import LogisticRegression  # late: half a second

        self.encoder = encoder
        matters, stances = world.relevances("train"), world.stances("train")
        pairs, threes = [row[:2] for row in matters], [row[:3] for row in stances]
        self.relevance, self.stance = (LogisticRegression(C=STRENGTH, max_iter=2000) for _ in range(2))
        self.relevance.fit(self._features(pairs), [row[2] for row in matters])
        self.stance.fit(self._features(threes), [row.label for row in stances])

    def matters(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """P(relevant) of each (statement, question): `[n]`."""
        return self.relevance.predict_proba(self._features(pairs))[:, 1]

    def stances(self, threes: Sequence[tuple[str, str, str]]) -> np.ndarray:
        """P(contradict), P(neutral), P(entail) of each (statement, question, answer): `[n,3]`."""
        return self.stance.predict_proba(self._features(threes))

    def _features(self, rows: Sequence[tuple[str, ...]]) -> np.ndarray:
        """Product and distance of the first text's vector and the last one's, and the cosines of all texts: `[n,f]`."""
        import numpy as np

        texts = sorted({text for row in rows for text in row})
        vector = dict(zip(texts, self.encoder.embed(texts).double().numpy(), strict=True))
        first, last = (np.array([vector[row[i]] for row in rows]) for i in (0, -1))
        cosines = [
            [vector[a] @ vector[b] for i, a in enumerate(row) for b in row[i + 1 :]]  # one of two texts, three of three
            for row in rows
        ]
        return SCALE * np.concatenate([2 * first * last, np.abs(first - last), np.array(cosines)], axis=1)


@lru_cache(maxsize=1)
def trained(encoder: Any) -> Judge:
    """The judge that reads this encoder's vectors."""
    return Judge(encoder)
