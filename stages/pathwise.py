"""Learning through the sampling itself: the reward is differentiated with respect to the policy (image)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages import labelling, panel
from stages.batches import Pathwise
from stages.parts import Part
from stages.records import Prompt
from stages.samples import by_prompt, seed_of, step_name

if TYPE_CHECKING:
    from stages.learn import Optimize
    from stages.online import Online
    from stages.policies.family import Policy


def differentiable(reward: Part) -> Callable[..., Tensor] | None:
    """The reward as a function of pixels, where its file defines one."""
    return getattr(inspect.getmodule(reward.function), "pixels", None)


class PathwiseUpdates:
    """Sampling anew for every update, with a gradient through it."""

    def __init__(self, policy: Policy, settings: Optimize, seed: int) -> None:
        assert settings.online is not None
        self.policy, self.online, self.seed = policy, settings.online, seed
        self.objective, self.chosen = settings.objective.part("objective", "optimize.objective")
        self.name = ""  # of the step

    def begin(self, batch: Sequence[Prompt], epoch: int) -> None:
        """Name the step: its forward passes share their random choices."""
        self.name = step_name(self.seed, epoch, batch)

    def loss(self, batch: Sequence[Prompt], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's losses and statistics."""
        sampling = pathwise(self.policy, batch, self.online, self.seed, epoch, self.name)
        losses, stats = self.objective.function(sampling, **self.chosen)
        return by_prompt(losses, stats, len(batch))


def pathwise(policy: Policy, prompts: Sequence[Prompt], online: Online, seed: int, epoch: int, name: str) -> Pathwise:
    """Sampling and scoring as functions that a gradient goes through; `name` is the step's."""
    k = online.num_generations
    asked = [prompt for prompt in prompts for _ in range(k)]
    seats = [seat for seat in panel.seats(online, "reward", where="params.yaml optimize.online") if seat.weight]

    def sample(grad_steps: int, repeats: int = 0) -> Tensor:
        return policy.differentiable_sample(  # type: ignore[attr-defined]
            prompts, k=k, seed=seed_of(seed, epoch), grad_steps=grad_steps, repeats=repeats
        )

    def reward(images: Tensor) -> Tensor:
        total = torch.zeros(len(images), device=images.device)
        shown = asked * (len(images) // len(asked))
        for seat in seats:
            function = differentiable(seat.part)
            assert function is not None
            total = total + seat.weight * labelling.unit(seat.part.spec, function(images, shown, **seat.settings))
        return total / sum(seat.weight for seat in seats)

    return Pathwise(sample, reward, steps=policy.steps, name=name)  # type: ignore[attr-defined]
