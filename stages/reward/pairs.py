"""What a reward model learns of preferences: pairs of scored answers, and how many of them it ranks right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from stages import feed, preferences
from stages.batches import Pairs, Steps
from stages.config import Choice
from stages.errors import UserError
from stages.parts import Spec
from stages.policies.family import Scorer
from stages.records import Candidate, Pair, Prompt


def made(
    pairing: Choice,
    prompts: list[Prompt],
    candidates: list[Candidate],
    temperature: float,
    rewards: Mapping[str, Spec],
    seed: int,
) -> list[Pair]:
    """The pairs that a pairing makes of scored candidates.

    Raises:
        UserError: it makes none.
    """
    try:
        found = preferences.pair(pairing, prompts, candidates, temperature, rewards, seed, "reward")
    except UserError as error:
        raise UserError(error.what, where=error.where, mend=f"{error.mend}, or set num_train_epochs to 0") from None
    told = [one for one in found if isinstance(one, Pair)]
    if not told:
        mend = "choose a pairing that makes pairs"
        raise UserError(f"pairing '{pairing.name}' makes no pair", where="params.yaml reward.pairing", mend=mend)
    return told


def size(pair: Pair) -> int:
    """Characters of both sides."""
    return len(pair.chosen.text) + len(pair.rejected.text)


def scored(scorer: Scorer, pairs: Sequence[Pair], *, soft: bool = False) -> Pairs:
    """The pairs with one score a side in the place of log-probs."""
    both = [feed.items(pair) for pair in pairs]
    scores = scorer.score([items[side] for side in (0, 1) for items in both])  # [2b,1]
    sides = [Steps(logp=side, mask=torch.ones_like(side, dtype=torch.bool)) for side in scores.chunk(2)]
    column = {
        name: torch.tensor([getattr(p, name) for p in pairs], device=scores.device) for name in ("prob", "margin")
    }
    return Pairs(sides[0], sides[1], prob=column["prob"] if soft else None, margin=column["margin"])


def quality(scorer: Scorer, train: Sequence[Pair], held: Sequence[Pair]) -> dict[str, float]:
    """How many pairs there were, and the accuracy on those that were learnt and on the others."""
    told = {"accuracy/train": accuracy(scorer, train), "accuracy/held_out": accuracy(scorer, held)}
    return {"pairs": float(len(train) + len(held)), **told}


@torch.no_grad()
def accuracy(scorer: Scorer, pairs: Sequence[Pair]) -> float:
    """Share of pairs whose chosen side scores higher, ties as one half; 0.5 where there is no pair."""
    sides = [scored(scorer, pairs[i : i + 16]) for i in range(0, len(pairs), 16)]
    margins = [m for both in sides for m in (both.chosen.logp - both.rejected.logp).flatten().tolist()]
    return sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) / len(margins) if margins else 0.5
