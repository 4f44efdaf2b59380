"""Reward: a reward model of the scores, Bradley-Terry by default; usable as the reward `reward_model` afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from stages import declared, feed, loop, preferences, records
from stages.batches import Pairs, Steps
from stages.config import Choice, Config, Run, Training
from stages.entry import Job, Stage
from stages.errors import UserError
from stages.policies import family
from stages.policies.family import Scorer
from stages.records import Candidate, Pair, Prompt

CANDIDATES = Path("data/label/candidates.jsonl")
PROMPTS = Path("data/generate/prompts.jsonl")


class Reward(Training):
    """The node `reward`; no epochs leave the head untrained, for data that has no two answers to a prompt."""

    base: Literal["encoder", "model"] = "encoder"  # what the scalar head sits on
    objective: Choice = Choice(name="bradley_terry")
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
    """The objective and the pairing exist and take their settings."""
    config.reward.objective.part("objective", "reward.objective")
    config.reward.pairing.part("pairing", "reward.pairing")


def run(job: Job[Settings]) -> dict[str, float]:
    """Write the scorer as a `save_pretrained` folder with the constants that standardise its scores."""
    config = job.config.reward
    objective, settings = config.objective.part("objective", "reward.objective")
    prompts, candidates = records.read(PROMPTS, Prompt), records.read(CANDIDATES, Candidate)
    train, held = labelled(config, prompts, candidates, job.config.run.seed)
    torch.manual_seed(job.config.run.seed)  # the new head
    scorer = family.scorer(job.config.run, Path("data/prepare") / config.base, trainable=True)

    def loss(batch: Sequence[Pair], epoch: int) -> tuple:
        return objective.function(scored(scorer, batch, soft=config.soft_labels), **settings)

    summary = loop.train(
        scorer,
        train,
        loss,
        config,
        seed=job.config.run.seed,
        scratch=job.scratch,
        journal=job.journal,
        label="reward",
        size=lambda p: len(p.chosen.text) + len(p.rejected.text),
    )
    standardise(scorer, prompts, candidates)
    scorer.save(job.out)
    job.journal.checkpoint(job.out, step=-1)
    return {
        **summary,
        "pairs": float(len(train) + len(held)),
        "accuracy/train": accuracy(scorer, train),
        "accuracy/held_out": accuracy(scorer, held),
    }


def labelled(
    config: Reward, prompts: list[Prompt], candidates: list[Candidate], seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs of the scored candidates.

    Raises:
        UserError: there is none, and training was asked for.
    """
    if not config.num_train_epochs:
        return [], []
    rewards = declared.read(declared.FILE)
    try:
        made = preferences.pair(config.pairing, prompts, candidates, config.temperature, rewards, seed, "reward")
    except UserError as error:
        raise UserError(error.what, where=error.where, mend=f"{error.mend}, or set num_train_epochs to 0") from None
    return split([p for p in made if isinstance(p, Pair)], config.held_out, seed)


def split(pairs: list[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs; all pairs of a prompt fall on the same side.

    Raises:
        UserError: no pair is left to train on.
    """
    ids = sorted({pair.id.rpartition("/")[0] for pair in pairs})
    held = set(random.Random(seed).sample(ids, round(share * len(ids))))
    train = [pair for pair in pairs if pair.id.rpartition("/")[0] not in held]
    if not train:
        raise UserError("holds no pair to train on", where=str(CANDIDATES), mend="choose a pairing that makes pairs")
    return train, [pair for pair in pairs if pair.id.rpartition("/")[0] in held]


def scored(scorer: Scorer, pairs: Sequence[Pair], *, soft: bool = False) -> Pairs:
    """The pairs with one score a side in the place of log-probs."""
    both = [feed.items(pair) for pair in pairs]
    scores = scorer.score([items[side] for side in (0, 1) for items in both])[:, None]  # [2b,1]
    sides = [Steps(logp=side, mask=torch.ones_like(side, dtype=torch.bool)) for side in scores.chunk(2)]
    column = {
        name: torch.tensor([getattr(p, name) for p in pairs], device=scores.device) for name in ("prob", "margin")
    }
    return Pairs(sides[0], sides[1], prob=column["prob"] if soft else None, margin=column["margin"])


def standardise(scorer: Scorer, prompts: list[Prompt], candidates: list[Candidate]) -> None:
    """Set the scorer's constants: mean 0 and spread 1 over the candidates that were labelled."""
    by_id = {prompt.id: prompt for prompt in prompts}
    scores = torch.tensor(scorer([by_id[c.prompt] for c in candidates], candidates), dtype=torch.float64)
    scorer.mean, scorer.std = float(scores.mean()), max(float(scores.std()), 1e-6)


@torch.no_grad()
def accuracy(scorer: Scorer, pairs: Sequence[Pair]) -> float:
    """Share of pairs whose chosen side scores higher, ties as one half; 0.5 where there is no pair."""
    sides = [scored(scorer, pairs[i : i + 16]) for i in range(0, len(pairs), 16)]
    margins = [m for both in sides for m in (both.chosen.logp - both.rejected.logp).flatten().tolist()]
    return sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) / len(margins) if margins else 0.5


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
