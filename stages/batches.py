"""The nouns in memory: what an objective receives. Shapes and units are stated here once.

`b` examples, `t` steps (a token, a denoising step, an action), `g` groups of `k` candidates. Log-probabilities
are in nats, float32 (float64 in tests). `mask` says which steps are real; padding is never guessed from values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from torch import Tensor

from stages.records import Completion, Message

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Item:
    """One completion to be priced."""

    id: str  # finds it in a cache
    messages: tuple[Message, ...]
    completion: Completion
    draw: str = ""  # names the seeded (timestep, noise) that prices it; both sides of a pair share it (image)

    @property
    def size(self) -> int:
        """Characters: a stand-in for tokens when batches of similar length are wanted."""
        return sum(len(message.content) for message in self.messages) + len(self.completion.text)


@dataclass(frozen=True)
class Steps:
    """Per-step quantities of `b` candidates; leading shape `[b, t]` (in `Groups`: `[g, k, t]`)."""

    logp: Tensor  # [b,t] log-prob of the taken step under the policy, differentiable
    mask: Tensor  # [b,t] bool, True where the step belongs to the candidate
    ref: Tensor | None = None  # [b,t] log-prob under the reference, no gradient
    old: Tensor | None = None  # [b,t] log-prob under the behaviour policy
    value: Tensor | None = None  # [b,t] value estimate
    reward: Tensor | None = None  # [b,t] reward of the step
    entropy: Tensor | None = None  # [b,t] entropy of the step's distribution
    top: Tensor | None = None  # [b,t,k] probabilities of its k most likely tokens, the likeliest first, no gradient
    kl: Tensor | None = None  # [b,t] exact KL of the step's distribution from the reference's, differentiable
    hidden: Tensor | None = None  # [b,t,d] last hidden state that the step is taken from, so before it, differentiable
    key_rank: Tensor | None = None  # [b,t] rank of its key phrase over their number, the first 1/n, inf in none


@dataclass(frozen=True)
class Pairs:
    """`b` pairwise preferences."""

    chosen: Steps
    rejected: Steps
    prob: Tensor | None = None  # [b] P(chosen is preferred), 1 where absent
    margin: Tensor | None = None  # [b] score of chosen minus score of rejected
    chosen_rate: Tensor | None = None  # [b] mean P(chosen beats a candidate of its prompt), itself included at 1/2
    rejected_rate: Tensor | None = None  # [b] the same for rejected


@dataclass(frozen=True)
class Groups:
    """`g` prompts with `k` scored candidates each."""

    steps: Steps  # leading shape [g,k]
    reward: Tensor  # [g,k]
    valid: Tensor  # [g,k] bool, False where a prompt has fewer than k candidates
    advantage: Tensor | None = None  # [g,k], or [g,k,t] where it differs by step, no gradient
    length: Tensor | None = None  # [] mean steps of a sample over the whole step, which this may be a part of


@dataclass(frozen=True)
class Singles:
    """`b` single candidates with a binary label."""

    steps: Steps
    label: Tensor | None = None  # [b] bool, True where desirable
    score: Tensor | None = None  # [b]
    mismatch: Steps | None = None  # [b,t] each prompt with the next prompt's candidate, no gradient (kto)


@dataclass(frozen=True)
class Hybrid:
    """`b` pairwise preferences, and fresh samples of the policy for the prompt of each."""

    pairs: Pairs
    samples: Groups | None = None  # [b,k], their rewards unknown (0); None where the settings ask for none


@dataclass(frozen=True)
class Revisions:
    """`b` pairwise preferences three times: answers to the prompt, and what either of them may be revised into."""

    answers: Pairs
    of_chosen: Pairs  # given the prompt, the chosen answer and the wish for a better one (see stages/revision.py)
    of_rejected: Pairs  # the same of the rejected answer


@dataclass(frozen=True)
class Pathwise:
    """Sampling that a gradient goes through, for objectives that differentiate the reward itself (image)."""

    # denoising steps that carry a gradient, the last ones -> images [b,c,h,w]; or (1, n): the last step alone, from n
    # fresh noisings of the finished images -> [n * b,c,h,w], all images of the first noising first
    sample: Callable[..., Tensor]
    reward: Callable[[Tensor], Tensor]  # images, of one noising or of several -> [b] or [n * b], more is better
    steps: int  # denoising steps of a sample
    name: str  # names this step's random choices


def apply(batch: Batch, function) -> Batch:
    """Map a function over every tensor of a batch, `None` left alone: `apply(batch, Tensor.double)`."""
    changed = {}
    for field in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif value is not None:
            changed[field.name] = apply(value, function)
    return replace(batch, **changed)  # type: ignore[type-var]
