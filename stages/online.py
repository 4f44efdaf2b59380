"""Online optimization: every step samples the policy, scores what it drew, and learns from that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from stages import labelling, loop, panel
from stages.average import Average
from stages.batches import Item, Pathwise, Steps
from stages.config import Choice, Run
from stages.errors import UserError
from stages.panel import Panel, Tools
from stages.parts import Part
from stages.policies.family import check_sampling
from stages.records import Prompt
from stages.reduce import average
from stages.samples import (
    Pass,
    Samples,
    by_prompt,
    draw,
    grouped,
    learned,
    outcomes,
    seed_of,
    step_name,
    together,
    untied,
)

if TYPE_CHECKING:
    from stages.journal import Journal
    from stages.learn import Optimize
    from stages.policies.family import Policy
    from stages.watch import Watcher


class Online(Panel):
    """The node `optimize.online`: who scores the samples, and how many there are; TRL's names.

    `per_device_train_batch_size` of `optimize` counts prompts.
    """

    num_generations: Annotated[int, Field(ge=2)] = 8  # K samples of a prompt
    num_iterations: Annotated[int, Field(ge=1)] = 1  # updates on the same samples
    advantage: Choice = Choice(name="group")
    ties: Literal["keep", "drop"] = "keep"  # drop: a prompt whose samples all score alike leaves the step and its mean
    ema_beta: Annotated[float, Field(ge=0)] = 0.0  # pull towards a moving average of the policy, see stages/average.py
    sampler: dict[str, Any] = Field(default_factory=dict)  # settings of the policy's own sampling


def check(objective: Part, settings: Online | None, family: str, *, where: str) -> None:
    """The node `online` is there for an objective that learns online, and everybody in it exists.

    Raises:
        UserError: naming what is missing or wrong.
    """
    if settings is None:
        what = f"objective '{objective.name}' learns online"
        raise UserError(what, where=where, mend="add `online: {rewards: ...}` beside it: who scores the samples")
    seats = panel.check(settings, where=f"{where}.online", family=family)
    settings.advantage.part("advantage", f"{where.removeprefix('params.yaml ')}.online.advantage")
    check_sampling(settings.sampler, family, where=f"{where}.online.sampler")
    if settings.ema_beta and "kl" not in objective.spec.needs:
        what = f"objective '{objective.name}' measures no divergence, and none from a moving average"
        raise UserError(what, where=f"{where}.online.ema_beta", mend="remove it, or choose awm or flow_grpo")
    if objective.feedback == "Pathwise":
        for name in ("num_iterations", "sampler", "ties"):
            if getattr(settings, name) != Online.model_fields[name].get_default(call_default_factory=True):
                what = f"objective '{objective.name}' samples anew for every update, as run.policy says"
                raise UserError(what, where=f"{where}.online.{name}", mend="remove it")
        for seat in seats:
            if seat.weight and differentiable(seat.part) is None:
                what = f"{seat.part.kind} '{seat.part.name}' has no gradient with respect to the image"
                raise UserError(what, where=seat.where, mend="choose one whose file defines `pixels`")


def differentiable(reward: Part) -> Callable[..., Tensor] | None:
    """The reward as a function of pixels, where its file defines one."""
    return getattr(inspect.getmodule(reward.function), "pixels", None)


def learn(
    policy: Policy,
    reference: Policy | None,
    prompts: Sequence[Prompt],
    settings: Optimize,
    tools: Tools,
    *,
    run: Run,
    scratch: Path,
    journal: Journal,
    watch: Watcher | None = None,
) -> dict[str, float]:
    """Train a policy in place on its own samples.

    Args:
        policy: samples and learns.
        reference: what objectives that need it stay close to.
        prompts: what it answers, a batch of them a step.
        settings: the objective, the loop's settings, and `online`.
        tools: what the panel needs.
        run: its seed names the samples.
        scratch: where checkpoints lie.
        journal: where metrics go.
        watch: called after each step.
    """
    assert settings.online is not None
    behind = Average(policy) if settings.online.ema_beta else None
    learner = updates(policy, reference, settings, tools, run.seed, behind)
    return loop.train(
        behind or policy,
        prompts,
        learner.loss,
        settings,
        seed=run.seed,
        scratch=scratch,
        journal=journal,
        size=lambda prompt: 0,
        label="online",
        repeats=settings.online.num_iterations,
        begin=learner.begin,
        watch=behind.watched(watch) if behind else watch,
    )


class Updates(Protocol):
    """What the loop asks of a way to learn from the policy's own samples."""

    def begin(self, batch: Sequence[Prompt], epoch: int) -> None:
        """A step begins, with all of its prompts."""
        ...

    def loss(self, batch: Sequence[Prompt], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses `[b]` and statistics `[b]` of some of them, means over the samples of each prompt."""
        ...


def updates(
    policy: Policy,
    reference: Policy | None,
    settings: Optimize,
    tools: Tools,
    seed: int,
    behind: Average | None = None,
) -> Updates:
    """The way to learn that the objective takes: from scored samples, or through the sampling itself."""
    objective, _ = settings.objective.part("objective", "optimize.objective")
    if objective.feedback == "Pathwise":
        return PathwiseUpdates(policy, settings, seed)
    return SampledUpdates(policy, reference, settings, tools, seed, behind)


class SampledUpdates:
    """The scored samples of the step at hand, and the loss of those that share a forward pass."""

    def __init__(
        self,
        policy: Policy,
        reference: Policy | None,
        settings: Optimize,
        tools: Tools,
        seed: int,
        behind: Average | None = None,
    ) -> None:
        assert settings.online is not None
        self.policy, self.reference, self.behind = policy, reference, behind
        self.online, self.tools, self.seed = settings.online, tools, seed
        self.at_once = settings.per_device_train_batch_size
        self.objective, self.chosen = settings.objective.part("objective", "optimize.objective")
        self.advantage, self.advantages = self.online.advantage.part("advantage", "optimize.online.advantage")
        self.held: dict[str, Pass] = {}  # by the prompts of a forward pass
        self.name = ""  # of the step

    def begin(self, batch: Sequence[Prompt], epoch: int) -> None:
        """Draw and score the samples of all prompts of a step; an update that repeats the step keeps them."""
        name = step_name(self.seed, epoch, batch)
        if name == self.name:
            return
        parts = [batch[i : i + self.at_once] for i in range(0, len(batch), self.at_once)]
        drawn = [draw(self.policy, part, self.online, self.tools, self.seed, epoch) for part in parts]
        reward, sizes = torch.cat([samples.reward for samples in drawn]), list(map(len, parts))
        if "advantage" in self.objective.spec.needs:
            advantage = self.advantage.function(outcomes(reward), **self.advantages).detach()
            for samples, values in zip(drawn, advantage.split(sizes), strict=True):
                samples.advantage = values
        weight = untied(reward) if self.online.ties == "drop" else torch.ones_like(reward[:, 0])
        self.held = {
            together(part): learned(samples, shares)
            for part, samples, shares in zip(parts, drawn, weight.split(sizes), strict=True)
        }
        self.name = name

    def loss(self, batch: Sequence[Prompt], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's losses and statistics, with the mean reward of each prompt and its spread."""
        held = self.held[together(batch)]
        samples = held.samples
        steps = priced(self.policy, self.reference, samples, self.objective.needs(self.chosen))
        losses, stats = self.objective.function(grouped(steps, samples.reward, samples.advantage), **self.chosen)
        losses, stats = by_prompt(losses, stats, len(held.rows))
        if self.behind is not None:
            away, _ = by_prompt(divergence(self.policy, self.behind.copy, samples.items), {}, len(held.rows))
            losses, stats = losses + self.online.ema_beta * away, stats | {"ema_kl": away.detach()}
        stats = {name: held.spread(values) for name, values in stats.items()}
        reward = {"reward": held.reward.mean(-1), "reward_std": held.reward.std(-1)}
        return held.spread(losses), stats | reward


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


def priced(policy: Policy, reference: Policy | None, samples: Samples, needs: tuple[str, ...]) -> Steps:
    """Steps of the samples with what the objective needs beside the log-probs."""
    wanted = reference if {"reference", "kl"} & set(needs) else None
    steps = policy.log_probs(samples.items, entropy="entropy" in needs, reference=wanted)
    samples.old = steps.logp.detach() if samples.old is None else samples.old
    return replace(steps, old=samples.old)


def divergence(policy: Policy, other: Policy, items: Sequence[Item]) -> Tensor:
    """The mean over its steps of how far the policy is from another one on each item: `[b]`, differentiable."""
    steps = policy.log_probs(items, reference=other)
    assert steps.kl is not None, "this family measures no divergence"
    return average(steps.kl, steps.mask)


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
