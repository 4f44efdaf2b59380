"""Reference: log-probs of every labelled completion under the policy that optimization stays close to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages import feed, preferences
from stages.config import Config, Run
from stages.entry import Job, Stage
from stages.policies import family

POLICY, LABELS = Path("data/sft"), Path("data/label/preferences.jsonl")


class Reference(Config):
    """The node `reference`."""

    draws: Annotated[int, Field(ge=1)] = 1  # image: seeded (timestep, noise) draws of each pair, one an epoch


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    reference: Reference = Reference()


def run(job: Job[Settings]) -> dict[str, float]:
    """Write logps.safetensors, and what else was computed for it, with the facts that they were computed from."""
    run = job.config.run
    policy = family.load(run, POLICY)
    cache = feed.reference(policy, feed.at_draws(policy, preferences.read(LABELS), job.config.reference.draws))
    facts = feed.facts(POLICY, LABELS, family.settings(run))
    cache.save(job.out / "logps.safetensors", facts)
    feed.remember(policy, job.out, facts)
    tokens = sum(len(values) for values in cache.values())
    return {
        "answers": float(len(cache)),
        "tokens": float(tokens),
        "logps/mean": float(sum(float(v.sum()) for v in cache.values()) / max(1, tokens)),
    }


STAGE = Stage(
    name="reference",
    schema=Settings,
    run=run,
    inputs=lambda config: {"policy": POLICY, "labels": LABELS},
    output=Path("data/reference"),
)
