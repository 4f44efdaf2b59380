"""The gate of a round: may self-play go on from the policy that it made?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from stages.config import Config
from stages.records import Candidate
from stages.watch import paired


class Gate(Config):
    """When to stop. Each limit speaks of samples of the new policy on the round's own prompts."""

    candidates: Annotated[int, Field(ge=1)] = 1  # samples of a prompt
    max_drop: Annotated[float, Field(ge=0)] = 2.0  # mean score may fall by this many standard errors
    min_entropy: Annotated[float, Field(ge=0)] = 0.05  # nats a token; below it the policy has collapsed
    max_clipped: Annotated[float, Field(ge=0, le=1)] = 0.95  # share of answers that do not end by themselves


def decide(gate: Gate, before: Sequence[Candidate], after: Sequence[Candidate]) -> dict[str, object]:
    """Compare samples of the policy that the round started from with samples of the one that it made.

        d_x = mean score of the new samples of prompt x - mean score of the old ones
        z = mean_x d_x / se(mean_x d_x)          over the prompts that both have scores of

    Args:
        gate: the limits.
        before: scored samples of the policy before the update.
        after: scored samples of the policy after it, of the same prompts.

    Returns:
        `continue`, the `reasons` against it, and the numbers they rest on.
    """
    entropies = [c.entropy for c in after if c.entropy is not None]
    told = {"clipped": mean([float(not c.finished) for c in after])}
    old, new = by_prompt(before), by_prompt(after)
    both = sorted(old.keys() & new.keys())
    reasons = []
    if both:
        change, error = paired([old[prompt] for prompt in both], [new[prompt] for prompt in both])
        told |= {"score": mean([new[prompt] for prompt in both]), "change": change}
        told["z"] = change / max(error, 1e-12)
        if told["z"] < -gate.max_drop:
            reasons.append(f"the mean score fell by {-change:.3f}, {-told['z']:.1f} standard errors")
    if entropies:
        told["entropy"] = mean(entropies)
        if told["entropy"] < gate.min_entropy:
            reasons.append(f"entropy is {told['entropy']:.3f} nats a token")
    if told["clipped"] > gate.max_clipped:
        reasons.append(f"{told['clipped']:.0%} of the answers do not end")
    return {"continue": not reasons, "reasons": reasons, **told}


def by_prompt(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Mean score of each prompt's candidates, of those that have one."""
    scores: dict[str, list[float]] = {}
    for candidate in candidates:
        if candidate.score is not None:
            scores.setdefault(candidate.prompt, []).append(candidate.score)
    return {prompt: mean(told) for prompt, told in scores.items()}


def mean(values: Sequence[float]) -> float:
    """Average of at least one value."""
    return sum(values) / len(values)
