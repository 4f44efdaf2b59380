"""Optimize: preferences to the next policy, by the chosen objective, from the first policy."""

from __future__ import annotations

from pathlib import Path

from stages import feed, files, learn, preferences
from stages.config import Config, Run
from stages.entry import Job, Stage
from stages.errors import UserError
from stages.learn import Optimize
from stages.policies import family

POLICY, LABELS, CACHE = Path("data/sft"), Path("data/label/preferences.jsonl"), Path("data/reference/logps.safetensors")


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    optimize: Optimize = Optimize()


def run(job: Job[Settings]) -> dict[str, float]:
    """Write the policy, its `previous` and the curves of its training."""
    config, run = job.config.optimize, job.config.run
    cache = feed.Cache.load(CACHE, feed.facts(POLICY, LABELS, family.settings(run)))
    policy = family.to_train(run, POLICY, lora_r=config.lora_r)
    summary = learn.learn(
        policy,
        preferences.read(LABELS),
        config,
        cache,
        seed=run.seed,
        scratch=job.scratch,
        journal=job.journal,
        label="optimize",
    )
    policy.save(job.out)
    files.write_json(job.out / "previous.json", {"previous": str(POLICY)})
    job.journal.checkpoint(job.out, step=-1)
    return summary


def check(config: Settings) -> None:
    """The objective fits, before any model is loaded."""
    learn.check(config.optimize.objective, config.run, where="optimize.objective")
    if config.optimize.num_train_epochs < 1:
        raise UserError("0 epochs", where="params.yaml optimize.num_train_epochs", mend="train for at least one")


STAGE = Stage(
    name="optimize",
    schema=Settings,
    run=run,
    inputs=lambda config: {"policy": POLICY, "labels": LABELS, "reference": CACHE},
    output=Path("data/optimize"),
    check=check,
)
