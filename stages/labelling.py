"""What the label, selfplay and evaluate stages share: scoring and comparing candidates. Pairs of them: pairs.py.

The panel scores candidates in [0, 1] (the weighted mix of its rewards) and compares two answers (that mix through a
sigmoid, averaged with what the judges say in both orders). All lists are aligned: `prompts[i]` is the prompt of
`candidates[i]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

from tqdm import tqdm

from stages import parts
from stages.errors import UserError
from stages.panel import Panel, Seat, Tools, seats
from stages.records import Candidate, Prompt

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 256  # candidates handed to a part at once: bounds memory and moves the progress bar
Value = TypeVar("Value", float, "Tensor")
TIE = 1e-9  # scores this close are equal: sums of the same weights and scores may differ in their last digits


# ---------------------------------------------------------------------------------------------------- scores


def align(prompts: list[Prompt], candidates: list[Candidate]) -> list[Prompt]:
    """The prompt of each candidate.

    Raises:
        UserError: a candidate of a prompt that is not there.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    for candidate in candidates:
        if candidate.prompt not in by_id:
            what = f"its prompt '{candidate.prompt}' is not among the prompts"
            raise UserError(what, where=f"candidate {candidate.id}", mend="rerun generate with these prompts")
    return [by_id[candidate.prompt] for candidate in candidates]


def score(panel: Panel, prompts: list[Prompt], candidates: list[Candidate], tools: Tools) -> list[Candidate]:
    """Candidates with `scores` by the key of the reward (in its own range) and `score`, the weighted mix in [0, 1].

    Every score is scaled to [0, 1] by its declared range and turned round where less is better. A reward that does
    not apply to a candidate is left out and the other weights are renormalised; if none applies, `score` is None.
    Where no reward has a weight, `score` is the mean probability that the judges see it beat its prompt's others.

    Raises:
        UserError: a reward gave a number that is not finite or outside its range.
    """
    rewards = seats(panel, "reward")
    columns = [_column(seat, prompts, candidates, tools) for seat in rewards]
    scored = []
    for candidate, values in zip(candidates, zip(*columns) if columns else [()] * len(candidates), strict=True):
        told = {seat.key: value for seat, value in zip(rewards, values) if value is not None}
        voices = [(s.weight, unit(s.part.spec, v)) for s, v in zip(rewards, values) if v is not None and s.weight]
        mix = sum(w * v for w, v in voices) / sum(w for w, _ in voices) if voices else None
        scored.append(candidate.model_copy(update={"scores": {**candidate.scores, **told}, "score": mix}))
    if panel.judges and not any(seat.weight for seat in rewards):
        return tournament(panel, prompts, scored, tools)
    return scored


def mixed(panel: Panel, tools: Tools) -> Callable[[list[Prompt], list[Candidate]], list[float]]:
    """The panel as one function, for best-of-n: 1/2, the middle of the range, where nothing applies."""
    return lambda prompts, candidates: [
        0.5 if candidate.score is None else candidate.score for candidate in score(panel, prompts, candidates, tools)
    ]


def unit(spec: parts.Spec, value: Value) -> Value:
    """A score on the scale where 0 is the worst of its range and 1 the best.

    >>> unit(parts.Spec(range=(-1, 1)), 0.5), unit(parts.Spec(range=(0, 10), higher=False), 2.5)
    (0.75, 0.75)
    """
    assert spec.range is not None, "a reward declares its range"
    low, high = spec.range
    share = (value - low) / (high - low)
    return share if spec.higher else 1 - share


def _column(seat: Seat, prompts: list[Prompt], candidates: list[Candidate], tools: Tools) -> list[float | None]:
    """What one reward says of each candidate, checked."""
    function = seat.call(tools)
    column: list[float | None] = []
    for part in _chunks(len(candidates), seat.key):
        column += function(prompts[part], candidates[part])
    low, high = seat.part.spec.range or (-math.inf, math.inf)
    for candidate, value in zip(candidates, column, strict=True):
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            what = f"reward '{seat.key}' gave {value}, outside its range [{low:g}, {high:g}]"
            raise UserError(what, where=f"candidate {candidate.id}", mend=f"drop it, or mend {seat.part.file}")
    return column


def _chunks(count: int, name: str) -> Iterator[slice]:
    """Slices over `count` rows under a progress bar, which shows in a terminal only."""
    for start in tqdm(range(0, count, CHUNK), desc=name, unit="chunk", leave=False, disable=None):
        yield slice(start, start + CHUNK)


# ---------------------------------------------------------------------------------------------------- comparisons


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow.

    >>> sigmoid(0.0), round(sigmoid(1.0), 4), sigmoid(-1e9)
    (0.5, 0.7311, 0.0)
    """
    return 0.5 * (1 + math.tanh(x / 2))


def both_orders(
    seat: Seat, prompts: list[Prompt], first: list[Candidate], second: list[Candidate], tools: Tools
) -> list[tuple[float, float]]:
    """P(first is better) as a judge says it when `first` is shown first, and when it is shown second.

    Raises:
        UserError: the judge gave no probability.
    """
    function = seat.call(tools)
    said: list[tuple[float, float]] = []
    for part in _chunks(len(prompts), seat.key):
        ahead = function(prompts[part], first[part], second[part])
        behind = function(prompts[part], second[part], first[part])
        said += [(a, 1 - b) for a, b in zip(ahead, behind, strict=True)]
    for candidate, orders in zip(first, said, strict=True):
        if not all(0 <= p <= 1 for p in orders):
            what = f"judge '{seat.key}' gave {orders}, not probabilities"
            raise UserError(what, where=f"candidate {candidate.id}", mend=f"drop it, or mend {seat.part.file}")
    return said


def compare(
    panel: Panel, prompts: list[Prompt], first: list[Candidate], second: list[Candidate], tools: Tools
) -> list[float]:
    """P(first is better than second): rewards and judges mixed by weight.

        P = (W * sigmoid((score_1 - score_2) / temperature) + sum_j w_j * judge_j) / (W + sum_j w_j)

    W is the weight of all rewards together, `judge_j` the mean of both orders. Scores are made afresh, since those
    that a candidate carries may be another panel's. Rewards that apply to neither side, or to one, have no say.
    """
    rewards, judges = seats(panel, "reward"), seats(panel, "judge")
    weight = sum(seat.weight for seat in rewards)
    voices: list[list[tuple[float, float]]] = [[] for _ in prompts]  # (weight, P(first)) of each comparison
    if weight:
        ones, twos = score(panel, prompts, first, tools), score(panel, prompts, second, tools)
        for voice, one, two in zip(voices, ones, twos, strict=True):
            if one.score is not None and two.score is not None:
                voice.append((weight, sigmoid((one.score - two.score) / panel.temperature)))
    for seat in judges:
        if seat.weight:
            for voice, (a, b) in zip(voices, both_orders(seat, prompts, first, second, tools), strict=True):
                voice.append((seat.weight, (a + b) / 2))
    return [sum(w * p for w, p in voice) / sum(w for w, _ in voice) if voice else 0.5 for voice in voices]


def tournament(panel: Panel, prompts: list[Prompt], candidates: list[Candidate], tools: Tools) -> list[Candidate]:
    """Candidates with `score` = mean P(it beats another candidate of its prompt); 1/2 where there is no other.

    It asks every judge k * (k - 1) times a prompt.
    """
    rows = sorted(range(len(candidates)), key=lambda i: candidates[i].prompt)
    games = []
    for _, group in groupby(rows, key=lambda i: candidates[i].prompt):
        members = list(group)
        games += [(i, j) for n, i in enumerate(members) for j in members[n + 1 :]]
    judged = panel.model_copy(update={"rewards": {}})
    firsts, seconds = [candidates[i] for i, _ in games], [candidates[j] for _, j in games]
    won: list[list[float]] = [[] for _ in candidates]
    for (i, j), p in zip(games, compare(judged, [prompts[i] for i, _ in games], firsts, seconds, tools), strict=True):
        won[i].append(p)
        won[j].append(1 - p)
    mean = [sum(p) / len(p) if p else 0.5 for p in won]
    return [c.model_copy(update={"score": m}) for c, m in zip(candidates, mean, strict=True)]
