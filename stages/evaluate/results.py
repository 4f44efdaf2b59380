"""The nouns of the report: what an evaluation found, in the order a reader meets it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.evaluate.fronts import Point


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, where there is one."""

    value: float
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Policy:
    """One policy of the pipeline, in pipeline order: base, sft, optimize, r1, ..."""

    name: str
    reward: float  # mean mixed reward on the held-out prompts
    kl: float  # nats per answer; of images the surrogate
    win_rate: Estimate  # percent, against the baseline
    length: float | None = None  # text: characters
    entropy: float | None = None  # text: nats per token
    repetition: float | None = None  # text: 0..1
    diversity: float | None = None  # images: 0..2


@dataclass(frozen=True)
class Kind:
    """Win rate on one kind of prompt, and the mean mixed reward before and after where it is given."""

    name: str
    n: int
    win_rate: Estimate  # percent
    base: float | None = None
    final: float | None = None


@dataclass(frozen=True)
class Reward:
    """Mean of one reward before and after."""

    name: str
    base: float
    final: float
    higher: bool = True  # more is better
    independent: bool = False  # it made no label
    change: Estimate | None = None  # with its interval, paired by prompt


@dataclass(frozen=True)
class Sample:
    """One held-out prompt with both answers: texts, or pictures as base64 of their files."""

    prompt: str
    kind: str
    base: str
    final: str
    base_scores: dict[str, float]
    final_scores: dict[str, float]
    prob: float  # P(final is preferred) under the labelling judges
    independent: float | None = None  # the same under the independent judge
    base_images: Sequence[str] = ()
    final_images: Sequence[str] = ()
    score: float | None = None  # mixed reward of the final answer
    credit: Sequence[tuple[str, float]] = ()  # text: tokens of the final answer, their log-ratios to the base in nats


@dataclass(frozen=True)
class Results:
    """Everything that the page shows.

    `headline` is keyed by metric: `win_rate`, `length_controlled_win_rate`, `independent_win_rate` (percent), `kl`,
    `surrogate_kl`, `length`, `repetition`, `entropy`, `image_diversity`, `ranking_accuracy` get a card, with
    `base_<key>` as the value before where it is given; every other key goes to the table of all numbers.
    """

    title: str
    settings: Mapping[str, Any]  # recipe, model, objective, seed, commit, ...
    headline: Mapping[str, Estimate]
    passed: bool  # the gate's verdict
    reasons: Sequence[str]  # why, one sentence each
    policies: Sequence[Policy] = ()
    kinds: Sequence[Kind] = ()
    rewards: Sequence[Reward] = ()
    samples: Sequence[Sample] = ()
    curves: Sequence[Mapping[str, Any]] = ()  # {stage, step, loss, rewards/margins, ...}
    audit: Mapping[str, Any] = field(default_factory=dict)  # of the labels
    family: str = "text"
    front: Sequence[Point] = ()  # means of two rewards, of the base and the final policy, in each direction
    front_of: Sequence[str] = ()  # which two
