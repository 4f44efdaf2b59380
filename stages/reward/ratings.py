"""What a reward model learns of ratings: answers with the scores of several rewards, one output for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stages.batches import Item, Singles, Steps
from stages.errors import UserError
from stages.labelling import unit
from stages.pairs import completion, spec
from stages.parts import Spec
from stages.policies.family import Scorer
from stages.records import Candidate, Prompt


@dataclass(frozen=True)
class Rated:
    """An answer, and its ratings by output, on the scale where 0 is the worst and 1 the best."""

    item: Item
    ratings: Mapping[str, float]  # of those that said something of it

    @property
    def id(self) -> str:
        """The candidate's."""
        return self.item.id


def made(
    outputs: Sequence[str], prompts: list[Prompt], candidates: list[Candidate], rewards: Mapping[str, Spec]
) -> list[Rated]:
    """The answers that one of some rewards said anything of.

    Args:
        outputs: keys of the rewards.
        prompts: what was asked.
        candidates: scored.
        rewards: what those who scored declare, by key.

    Raises:
        UserError: nobody of that key scored.
    """
    specs = {key: spec(rewards, key, "params.yaml reward.outputs") for key in outputs}
    by_id = {prompt.id: prompt for prompt in prompts}
    found = []
    for one in candidates:
        told = {key: unit(specs[key], one.scores[key]) for key in outputs if key in one.scores}
        if told and not one.blank:
            found.append(Rated(Item(one.id, by_id[one.prompt].messages, completion(one)), told))
    if not found:
        mend = "rate some answers, or set num_train_epochs to 0"
        raise UserError(f"no answer has a score by {', '.join(outputs)}", where="params.yaml reward.outputs", mend=mend)
    return found


def size(rated: Rated) -> int:
    """Characters."""
    return rated.item.size


def scored(scorer: Scorer, rated: Sequence[Rated]) -> Singles:
    """The answers with the scores of m outputs in the place of log-probs, and their ratings `[b,m]` as rewards."""
    scores = scorer.score([one.item for one in rated])
    told = [[one.ratings.get(name, 0.0) for name in scorer.outputs] for one in rated]
    there = [[name in one.ratings for name in scorer.outputs] for one in rated]
    reward = torch.tensor(told, dtype=scores.dtype, device=scores.device)
    return Singles(Steps(scores, torch.tensor(there, device=scores.device), reward=reward))


def quality(scorer: Scorer, train: Sequence[Rated], held: Sequence[Rated]) -> dict[str, float]:
    """How many answers there were; of those held out mean absolute error and correlation of each output's ratings."""
    told = {"answers": float(len(train) + len(held))}
    for name, rows in compared(scorer, held).items():
        said, wanted = np.array(rows).T
        told[f"error/{name}"] = float(np.abs(said - wanted).mean())
        if said.std() > 0 and wanted.std() > 0:
            told[f"correlation/{name}"] = float(np.corrcoef(said, wanted)[0, 1])
    return told


@torch.no_grad()
def compared(scorer: Scorer, rated: Sequence[Rated]) -> dict[str, list[tuple[float, float]]]:
    """What each output says and what the rating was, of the answers that have it."""
    found: dict[str, list[tuple[float, float]]] = {}
    for i in range(0, len(rated), 16):
        steps = scored(scorer, rated[i : i + 16]).steps
        assert steps.reward is not None
        for row, column in steps.mask.nonzero().tolist():
            pair = float(steps.logp[row, column]), float(steps.reward[row, column])
            found.setdefault(scorer.outputs[column], []).append(pair)
    return found
