"""Arms of bandits drawn several at a time, as the groups that an objective takes: for claims beside bandits.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stages import parts
from stages.batches import Groups
from tests.claims import bandits
from tests.claims.bandits import Bandit, Loss


def draw(behaviour: Tensor, k: int, noise: torch.Generator) -> Tensor:
    """Arms `[s,g,k]` of log-probs `[s,g,a]`, independently."""
    flat = behaviour.detach().exp().flatten(0, 1)
    return torch.multinomial(flat, k, replacement=True, generator=noise).unflatten(0, behaviour.shape[:2])


def grouped(world: Bandit, arms: Tensor, logp: Tensor, behaviour: Tensor) -> Groups:
    """Arms `[s,g,k]` as groups `[s*g,k]` of one step each, with the true reward."""
    row = torch.arange(arms.shape[0] * arms.shape[1])[:, None]
    place = row * logp.shape[-1] + arms.flatten(0, 1)  # [s*g,k]
    flat = bandits.steps(logp, world.ref, place.flatten())
    split = {name: x.unflatten(0, place.shape) for name, x in vars(flat).items() if x is not None}
    steps = replace(flat, **split, old=behaviour.detach().flatten()[place][..., None])
    there = torch.ones_like(place, dtype=torch.bool)
    return Groups(steps, reward=world.reward.flatten()[place], valid=there)


def online(
    world: Bandit, objective: str, *, k: int, seed: int, behaviour: Tensor | None = None, **settings: Any
) -> Loss:
    """The loss of fresh groups at every update, summed over seeds.

    Args:
        world: what they are drawn of.
        objective: a part that takes groups; one that needs advantages gets those of `leave_one_out`.
        k: arms of a prompt.
        seed: of the draws.
        behaviour: log-probs `[s,g,a]` to draw with; the policy's own by default.
        settings: of the objective.
    """
    part, worth = parts.find("objective", objective), parts.find("advantage", "leave_one_out").function
    noise, prompts = torch.Generator().manual_seed(seed), world.reward.shape[1]

    def loss(logp: Tensor) -> Tensor:
        own = logp if behaviour is None else behaviour
        batch = grouped(world, draw(own, k, noise), logp, own)
        if "advantage" in part.spec.needs:
            batch = replace(batch, advantage=worth(batch))
        losses = part.function(batch, **settings)[0]
        return losses.reshape(len(losses), -1).mean(-1).sum() / prompts

    return loss
