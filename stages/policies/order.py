"""Batches of similar length: little padding, bounded memory."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

TIGHT = 1.1  # tokens of a padded batch for each real one, where a pass more costs less than padding does


def by_length(rows: Sequence[Sequence[int]], *, tokens: int, waste: float = float("inf")) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of at most `tokens` tokens, padding included.

    A batch also holds at most `waste` times its real tokens.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batch: list[int] = []
    real = 0
    for i in order:
        padded, real = (len(batch) + 1) * len(rows[i]), real + len(rows[i])
        if batch and (padded > tokens or padded > waste * real):
            yield batch
            batch, real = [], len(rows[i])
        batch.append(i)
    if batch:
        yield batch


def by_owner(owners: Sequence[Hashable], sizes: Sequence[int], *, tokens: int) -> Iterator[list[int]]:
    """Indices in batches of about `tokens` tokens that never part the rows of an owner, which share its computation.

    >>> list(by_owner(["a", "b", "a"], [5, 9, 5], tokens=12))
    [[1], [0, 2]]
    """
    rows: dict[Hashable, list[int]] = {}
    for i, owner in enumerate(owners):
        rows.setdefault(owner, []).append(i)
    held = list(rows.values())
    for batch in by_length([range(sum(sizes[i] for i in each)) for each in held], tokens=tokens):
        yield [i for owner in batch for i in held[owner]]
