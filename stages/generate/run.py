"""Generate: candidates of the base model, or of the first policy, for the first training prompts."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages import labelling, panel, parts, records, rollout, toolbox
from stages.config import Choice, Config, Run
from stages.entry import Job, Stage
from stages.panel import Panel
from stages.policies import family
from stages.records import Prompt

PROMPTS, MODEL, ENCODER = Path("data/prepare/train.jsonl"), Path("data/prepare/model"), Path("data/prepare/encoder")


class Generate(Config):
    """The node `generate`."""

    sampler: Choice = Choice(name="temperature")
    candidates: Annotated[int, Field(ge=1)] = 4  # K
    prompts: Annotated[int, Field(ge=1)] = 96  # how many of the training prompts
    policy: str = "data/prepare/model"  # who answers; data/sft where sft learns from the data's own demonstrations
    panel: Panel = Panel()  # who scores, for samplers that choose by score (best_of_n)


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    generate: Generate = Generate()


def check(config: Settings) -> None:
    """The sampler exists, takes these settings, and has a panel if it needs scores."""
    part, _ = config.generate.sampler.part("sampler", "generate.sampler")
    parts.fits(part, config.run.family, where="params.yaml generate.sampler.name")
    if "scores" in part.spec.needs:
        panel.check(config.generate.panel, where="params.yaml generate.panel", family=config.run.family)


def run(job: Job[Settings]) -> dict[str, float]:
    """Write candidates.jsonl, K a prompt, in the order of the prompts."""
    config = job.config.generate
    part, settings = config.sampler.part("sampler", "generate.sampler")
    prompts = records.read(PROMPTS, Prompt)[: config.prompts]
    policy = family.load(job.config.run, Path(config.policy))
    data = {}
    if "scores" in part.spec.needs:
        needs = panel.needs(config.panel, where="params.yaml generate.panel")
        tools = toolbox.load(needs, job.config.run, encoder=ENCODER, model=MODEL)
        data["score"] = labelling.mixed(config.panel, tools)
    draw = partial(part.function, policy, k=config.candidates, seed=job.config.run.seed, **settings, **data)
    chunks, k = job.scratch / "chunks", config.candidates
    candidates = rollout.sample(draw, prompts, k, chunks, label="generate", chunk=policy.chunk)
    records.write(job.out / "candidates.jsonl", candidates)
    records.write(job.out / "prompts.jsonl", prompts)
    return rollout.summary(candidates)


STAGE = Stage(
    name="generate",
    schema=Settings,
    run=run,
    inputs=lambda config: {
        "prompts": PROMPTS,
        "policy": Path(config.generate.policy),
        "model": MODEL,
        "encoder": ENCODER,
        "parts": Path("data/parts/generate.json"),
    },
    output=Path("data/generate"),
    check=check,
)
