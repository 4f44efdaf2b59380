"""Reference: log-probs of every labelled completion under the policy that optimization stays close to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages import cached, feed, files, preferences, revision
from stages.config import Config, Run
from stages.entry import Job, Stage
from stages.feed import Example
from stages.policies import family
from stages.reference import ranks

POLICY, LABELS = Path("data/sft"), Path("data/label/preferences.jsonl")


class Reference(Config):
    """The node `reference`."""

    draws: Annotated[int, Field(ge=1)] = 1  # image: seeded (timestep, noise) draws of each pair, one an epoch
    revisions: bool = False  # price either answer as a revision of the other and of itself too, for srpo


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    reference: Reference = Reference()


def run(job: Job[Settings]) -> dict[str, float]:
    """Write logps.safetensors, and what else was computed for it, with the facts that they were computed from.

    Of pairs, difficulty.json says by how many nats the reference prefers the rejected answer, hardest first.
    """
    run = job.config.run
    policy = family.load(run, POLICY)
    labels = preferences.read(LABELS)
    labelled: Sequence[Example] = labels
    if job.config.reference.revisions:
        pairs = feed.only_pairs(labelled, "revisions are made of pairs", where="params.yaml reference.revisions")
        labelled = [revision.of(pair) for pair in pairs]
    cache = feed.reference(policy, feed.at_draws(policy, labelled, job.config.reference.draws))
    facts = cached.facts(POLICY, LABELS, family.settings(run))
    cache.save(job.out / "logps.safetensors", facts)
    cached.remember(policy, job.out, facts)
    tokens = sum(len(values) for values in cache.values())
    draws = job.config.reference.draws if policy.seeded else 1
    hardness = ranks.difficulty(cache, labels, draws)
    if hardness:
        files.write_text(job.out / "difficulty.json", json.dumps(hardness, indent=2) + "\n")
    return {
        "answers": float(len(cache)),
        "tokens": float(tokens),
        "logps/mean": float(sum(float(v.sum()) for v in cache.values()) / max(1, tokens)),
        **{f"ranking/{name}": value for name, value in ranks.summary(cache, labels, draws).items()},
    }


STAGE = Stage(
    name="reference",
    schema=Settings,
    run=run,
    inputs=lambda config: {"policy": POLICY, "labels": LABELS},
    output=Path("data/reference"),
)
