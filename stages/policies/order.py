"""Batches of similar length: little padding, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def by_length(rows: Sequence[Sequence[int]], *, tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of at most `tokens` tokens, padding included."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batch: list[int] = []
    for i in order:
        if batch and (len(batch) + 1) * len(rows[i]) > tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
