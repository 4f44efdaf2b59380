"""Label: scores by every reward of the panel, pairs by the pairing rule, probabilities with the judges' say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages import declared, files, panel, preferences, records, toolbox
from stages.config import Choice, Config, Run
from stages.entry import Job, Stage
from stages.label.audit import audit, leaks
from stages.pairs import demonstrations
from stages.panel import Panel
from stages.records import Candidate, Pair, Prompt

PROMPTS, CANDIDATES = Path("data/generate/prompts.jsonl"), Path("data/generate/candidates.jsonl")
MODEL, ENCODER, HELD_OUT = Path("data/prepare/model"), Path("data/prepare/encoder"), Path("data/prepare/test.jsonl")


class Label(Panel):
    """The node `label`: the panel, and how scored candidates become preferences."""

    pairing: Choice = Choice(name="best_worst")
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of preferences turned round on purpose: label noise


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    label: Label


def check(config: Settings) -> None:
    """Every part exists and takes its settings."""
    panel.check(config.label, where="params.yaml label", family=config.run.family)
    config.label.pairing.part("pairing", "label.pairing")


def run(job: Job[Settings]) -> dict[str, float]:
    """Write candidates.jsonl with all scores, preferences.jsonl, demonstrations.jsonl (the best ones), audit.json.

    rewards.json has what those who scored declare, by the key of their scores.

    Where labels are flipped, flipped.json has the ids of those that were.
    """
    config = job.config.label
    prompts, candidates = records.read(PROMPTS, Prompt), records.read(CANDIDATES, Candidate)
    tools = toolbox.load(panel.needs(config), job.config.run, encoder=ENCODER, model=MODEL)
    orders: dict[str, list[tuple[float, float]]] = {}
    scored, made = preferences.make(
        config, config.pairing, prompts, candidates, tools, seed=job.config.run.seed, where="label", orders=orders
    )
    told, turned = preferences.flip(made, config.flip, job.config.run.seed)
    if config.flip:
        files.write_json(job.out / "flipped.json", turned)
    records.write(job.out / "candidates.jsonl", scored)
    rewards = declared.of(config)
    declared.write(job.out / declared.FILE.name, rewards)
    records.write(job.out / "preferences.jsonl", told)
    records.write(job.out / "demonstrations.jsonl", demonstrations(prompts, scored))
    pairs = [p for p in told if isinstance(p, Pair)]
    lower = [key for key, spec in rewards.items() if not spec.higher]
    found = audit(scored, pairs, lower=lower, orders=orders) if pairs else {}
    if config.flip:
        found["flipped"] = len(turned) / len(told)
    found["leaks"] = float(leaks(prompts, records.read(HELD_OUT, Prompt)))
    files.write_json(job.out / "audit.json", found)
    job.journal.table("scored_candidates", preferences.table(prompts, scored)[:200])
    return {**preferences.summary(scored, told), **{f"audit/{name}": value for name, value in found.items()}}


STAGE = Stage(
    name="label",
    schema=Settings,
    run=run,
    inputs=lambda config: {
        "prompts": PROMPTS,
        "candidates": CANDIDATES,
        "model": MODEL,
        "encoder": ENCODER,
        "held_out": HELD_OUT,
        "parts": Path("data/parts/label.json"),
    },
    output=Path("data/label"),
    check=check,
)
