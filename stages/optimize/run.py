"""Optimize: the next policy, from labelled preferences or from the policy's own samples, by the chosen objective."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages import cached, feed, files, learn, online, panel, preferences, records, toolbox, watch
from stages.cached import Cache
from stages.config import Config, Run
from stages.entry import Job, Stage
from stages.errors import UserError
from stages.learn import Optimize
from stages.panel import Tools
from stages.parts import Part
from stages.policies import family
from stages.policies.family import Policy
from stages.records import Pair, Prompt

POLICY, LABELS, CACHE = Path("data/sft"), Path("data/label/preferences.jsonl"), Path("data/reference/logps.safetensors")
PROMPTS, MODEL, ENCODER = Path("data/prepare/train.jsonl"), Path("data/prepare/model"), Path("data/prepare/encoder")
SCORER, WHERE = Path("data/reward"), "params.yaml optimize"


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    optimize: Optimize = Optimize()


def run(job: Job[Settings]) -> dict[str, float]:
    """Write the policy, its `previous` and the curves of its training."""
    config, run = job.config.optimize, job.config.run
    objective, chosen = config.objective.part("objective", "optimize.objective")
    policy = family.to_train(run, POLICY, lora_r=config.lora_r)
    tools = load_tools(config, run)
    looking = watcher(job, policy, tools)
    if objective.spec.online:
        asked, cache = material(objective, policy, run)
        summary = online.learn(
            policy,
            family.load(run, POLICY) if online.compares(objective, chosen) else None,
            asked,
            config,
            tools,
            run=run,
            scratch=job.scratch,
            journal=job.journal,
            watch=looking,
            cache=cache,
        )
    else:
        summary = learn.learn(
            policy,
            preferences.read(LABELS),
            config,
            remembered(policy, run),
            seed=run.seed,
            scratch=job.scratch,
            journal=job.journal,
            label="optimize",
            watch=looking,
        )
    policy.save(job.out)
    files.write_json(job.out / "previous.json", {"previous": str(POLICY)})
    job.journal.checkpoint(job.out, step=-1)
    return summary


def material(objective: Part, policy: Policy, run: Run) -> tuple[Sequence[Prompt] | Sequence[Pair], Cache | None]:
    """What an online objective goes through: prompts; or the labelled pairs and their reference log-probs.

    Raises:
        UserError: it wants pairs, and the labels are none.
    """
    if objective.feedback != "Hybrid":
        return records.read(PROMPTS, Prompt), None
    wish = f"objective '{objective.name}' takes pairs"
    return feed.only_pairs(preferences.read(LABELS), wish, where=f"{WHERE}.objective.name"), remembered(policy, run)


def remembered(policy: Policy, run: Run) -> Cache:
    """Reference log-probs of the labelled answers; the policy starts from what else the reference computed."""
    facts = cached.facts(POLICY, LABELS, family.settings(run))
    cached.recall(policy, CACHE.parent, facts)
    return Cache.load(CACHE, facts)


def watcher(job: Job[Settings], policy: Policy, tools: Tools) -> watch.Watcher | None:
    """Who looks at samples as training goes, if anybody."""
    config = job.config.optimize.watch
    if config is None:
        return None
    prompts = records.read(PROMPTS, Prompt)
    return watch.Watcher(
        policy, prompts, config, tools, seed=job.config.run.seed, scratch=job.scratch, journal=job.journal
    )


def load_tools(config: Optimize, run: Run) -> Tools:
    """What those who score samples need."""
    panels = [(config.online, f"{WHERE}.online"), (config.watch, f"{WHERE}.watch")]
    needs = {
        need for one, where in panels if one and (one.rewards or one.judges) for need in panel.needs(one, where=where)
    }
    return toolbox.load(needs, run, encoder=ENCODER, model=MODEL, scorer=SCORER)


def check(config: Settings) -> None:
    """The objective fits and whoever scores exists, before any model is loaded."""
    chosen = config.optimize
    objective = learn.check(chosen, config.run, offline=False)
    if objective.spec.online:
        online.check(objective, chosen.online, config.run.family, where=WHERE)
    watch.check(chosen.watch, config.run.family, where=f"{WHERE}.watch")
    if chosen.num_train_epochs < 1:
        raise UserError("0 epochs", where=f"{WHERE}.num_train_epochs", mend="train for at least one")


STAGE = Stage(
    name="optimize",
    schema=Settings,
    run=run,
    inputs=lambda config: {
        "policy": POLICY,
        "labels": LABELS,
        "reference": CACHE,
        "prompts": PROMPTS,
        "model": MODEL,
        "encoder": ENCODER,
        "scorer": SCORER,
        "parts": Path("data/parts/optimize.json"),
    },
    output=Path("data/optimize"),
    check=check,
)
