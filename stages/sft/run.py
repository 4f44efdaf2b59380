"""Sft: the first policy, trained on demonstrations: the best of the labelled candidates, or what the data brings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from stages import feed, loop, parts, records
from stages.config import Choice, Config, Run, Training
from stages.entry import Job, Stage
from stages.errors import UserError
from stages.policies import family
from stages.records import Single

MODEL = Path("data/prepare/model")
GIVEN = {"entropy", "hidden"}  # what a demonstration can be priced with


class Sft(Training):
    """The node `sft`; no epochs leave the base model as it is."""

    objective: Choice = Choice(name="nll")
    demonstrations: str = "data/label/demonstrations.jsonl"  # or data/prepare/demonstrations.jsonl: sft comes first
    policy: dict[str, Any] = Field(default_factory=dict)  # over run.policy: how demonstrations are priced


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    sft: Sft = Sft()


def run(job: Job[Settings]) -> dict[str, float]:
    """Write the policy: an adapter, or the whole model where `lora_r` is 0."""
    config, run = job.config.sft, pricing(job.config)
    objective, settings = config.objective.part("objective", "sft.objective")
    shown = records.read(Path(config.demonstrations), Single)
    if config.num_train_epochs and not shown:
        mend = "rerun what writes it; or keep a ready model as it is: sft.num_train_epochs 0"
        raise UserError("holds no answer to learn from", where=config.demonstrations, mend=mend)
    policy = family.to_train(run, MODEL, lora_r=config.lora_r)

    def loss(batch: Sequence[Single], epoch: int) -> tuple:
        return objective.function(feed.batch(policy, batch, objective.spec.needs, None, draw=epoch), **settings)

    summary = loop.train(
        policy,
        shown,
        loss,
        config,
        seed=run.seed,
        scratch=job.scratch,
        journal=job.journal,
        label="sft",
        size=lambda single: feed.items(single)[0].size,
    )
    policy.save(job.out)
    job.journal.checkpoint(job.out, step=-1)
    return {"demonstrations": float(len(shown)), **summary}


def pricing(config: Settings) -> Run:
    """The node `run` as it holds here: demonstrations have no trajectory, and pretraining its own levels and weight."""
    return config.run.model_copy(update={"policy": {**config.run.policy, **config.sft.policy}})


def check(config: Settings) -> None:
    """The objective takes demonstrations and its settings, and the family takes those of `sft.policy`."""
    objective, _ = config.sft.objective.part("objective", "sft.objective")
    where, lacking = "params.yaml sft.objective.name", sorted(set(objective.spec.needs) - GIVEN)
    parts.fits(objective, config.run.family, where=where)
    if objective.feedback != "Singles" or objective.spec.online or lacking:
        told = ", ".join(lacking) or objective.feedback.lower()
        what = f"objective '{objective.name}' takes {told}, sft has demonstrations"
        raise UserError(what, where=where, mend="choose 'nll'")
    family.settings(pricing(config))


STAGE = Stage(
    name="sft",
    schema=Settings,
    run=run,
    inputs=lambda config: {"demonstrations": Path(config.sft.demonstrations), "model": MODEL},
    output=Path("data/sft"),
    check=check,
)
