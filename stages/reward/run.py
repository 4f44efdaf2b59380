"""Reward: a reward model of the scores, Bradley-Terry by default; usable as the reward `reward_model` afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field

from stages import declared, loop, records
from stages.config import Choice, Config, Run, Training
from stages.entry import Job, Stage
from stages.errors import UserError
from stages.parts import Part
from stages.policies import family
from stages.policies.family import Scorer
from stages.records import Candidate, Pair, Prompt
from stages.reward import pairs, ratings
from stages.reward.ratings import Rated

CANDIDATES = Path("data/label/candidates.jsonl")
PROMPTS = Path("data/generate/prompts.jsonl")
Example = TypeVar("Example", bound=Pair | Rated)


class Reward(Training):
    """The node `reward`; no epochs leave the head untrained, for data that has no two answers to a prompt."""

    base: Literal["encoder", "model"] = "encoder"  # what the head sits on
    objective: Choice = Choice(name="bradley_terry")
    outputs: tuple[str, ...] = ()  # of `regression`: the keys of label's rewards that one output each is held to
    pairing: Choice = Choice(name="all_pairs")  # of the scored candidates; all K * (K - 1) / 2 cost little here
    temperature: Annotated[float, Field(gt=0)] = 0.1  # P(chosen is better) = sigmoid(score difference / temperature)
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1  # share of prompts, not of pairs, kept for the accuracy
    lora_r: Literal[0] = 0  # all weights
    soft_labels: bool = False  # learn from P(chosen is better) as labelled; else from the order alone


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    reward: Reward = Reward()


def check(config: Settings) -> None:
    """The objective and the pairing exist, take their settings, and fit what a reward model learns from.

    Raises:
        UserError: naming what does not fit.
    """
    objective, _ = config.reward.objective.part("objective", "reward.objective")
    config.reward.pairing.part("pairing", "reward.pairing")
    if not rates(objective) and (objective.feedback != "Pairs" or set(objective.spec.needs) - {"scores"}):
        what = f"objective '{objective.name}' does not learn from scores alone"
        raise UserError(what, where="params.yaml reward.objective.name", mend="choose 'bradley_terry' or 'regression'")
    if rates(objective) and not config.reward.outputs:
        mend = "name rewards of label, such as [relevance, length]"
        raise UserError("no output", where="params.yaml reward.outputs", mend=mend)
    if config.reward.outputs and not rates(objective):
        mend = "choose the objective 'regression', or drop the outputs"
        raise UserError(f"'{objective.name}' has one output", where="params.yaml reward.outputs", mend=mend)


def rates(objective: Part) -> bool:
    """Whether an objective learns ratings; the others learn preferences."""
    return objective.feedback == "Singles" and "step_reward" in objective.spec.needs


def run(job: Job[Settings]) -> dict[str, float]:
    """Write the scorer as a `save_pretrained` folder with its outputs and the constants that standardise its scores."""
    config, seed = job.config.reward, job.config.run.seed
    objective, settings = config.objective.part("objective", "reward.objective")
    prompts, candidates = records.read(PROMPTS, Prompt), records.read(CANDIDATES, Candidate)
    rows: Sequence[Pair | Rated] = []
    if config.num_train_epochs:
        rewards = declared.read(declared.FILE)
        if config.outputs:
            rows = ratings.made(config.outputs, prompts, candidates, rewards)
        else:
            rows = pairs.made(config.pairing, prompts, candidates, config.temperature, rewards, seed)
    train, held = split(rows, config.held_out, seed)
    kind = ratings if config.outputs else pairs
    scored = ratings.scored if config.outputs else partial(pairs.scored, soft=config.soft_labels)
    torch.manual_seed(seed)  # the new head
    base = Path("data/prepare") / config.base
    scorer = family.scorer(job.config.run, base, trainable=True, outputs=config.outputs)
    summary = loop.train(
        scorer,
        train,
        lambda batch, epoch: objective.function(scored(scorer, batch), **settings),
        config,
        seed=seed,
        scratch=job.scratch,
        journal=job.journal,
        label="reward",
        size=kind.size,
    )
    if not config.outputs:  # a rating has a scale of its own
        standardise(scorer, prompts, candidates)
    scorer.save(job.out)
    job.journal.checkpoint(job.out, step=-1)
    return {**summary, **kind.quality(scorer, train, held)}


def split(rows: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out rows; all of a prompt fall on the same side.

    Raises:
        UserError: there are rows, and none is left to train on.
    """
    ids = sorted({row.id.rpartition("/")[0] for row in rows})
    held = set(random.Random(seed).sample(ids, round(share * len(ids))))
    train = [row for row in rows if row.id.rpartition("/")[0] not in held]
    if rows and not train:
        mend = "label more prompts, or hold out fewer"
        raise UserError("all prompts are held out", where="params.yaml reward.held_out", mend=mend)
    return train, [row for row in rows if row.id.rpartition("/")[0] in held]


def standardise(scorer: Scorer, prompts: list[Prompt], candidates: list[Candidate]) -> None:
    """Set the scorer's constants: mean 0 and spread 1 over the candidates that were labelled."""
    by_id = {prompt.id: prompt for prompt in prompts}
    scores = torch.tensor(scorer([by_id[c.prompt] for c in candidates], candidates), dtype=torch.float64)
    scorer.mean, scorer.std = float(scores.mean()), max(float(scores.std()), 1e-6)


STAGE = Stage(
    name="reward",
    schema=Settings,
    run=run,
    inputs=lambda config: {
        "candidates": CANDIDATES,
        "rewards": declared.FILE,
        "prompts": PROMPTS,
        "base": Path("data/prepare") / config.reward.base,
    },
    output=Path("data/reward"),
    check=check,
)
