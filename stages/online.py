"""Online optimization: every step samples the policy, scores what it drew, and learns from that."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

from stages import labelling, loop, panel
from stages.batches import Groups, Item, Pathwise, Steps
from stages.config import Choice, Run
from stages.errors import UserError
from stages.panel import Panel, Tools
from stages.parts import Part
from stages.policies.family import check_sampling
from stages.records import Candidate, Prompt

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
    sampler: dict[str, Any] = Field(default_factory=dict)  # settings of the policy's own sampling


@dataclass
class Samples:
    """What one forward pass learns from; kept for the updates that share it."""

    items: list[Item]
    reward: Tensor  # [g,k]
    advantage: Tensor | None = None  # [g,k], of all samples of the step
    old: Tensor | None = None  # [g*k,t], filled by the first update: until then the policy is its own behaviour


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
    if objective.feedback == "Pathwise":
        for name, idle in (("num_iterations", settings.num_iterations > 1), ("sampler", bool(settings.sampler))):
            if idle:
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
    learner = updates(policy, reference, settings, tools, run.seed)
    return loop.train(
        policy,
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
        watch=watch,
    )


class Updates(Protocol):
    """What the loop asks of a way to learn from the policy's own samples."""

    def begin(self, batch: Sequence[Prompt], epoch: int) -> None:
        """A step begins, with all of its prompts."""
        ...

    def loss(self, batch: Sequence[Prompt], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses `[b]` and statistics `[b]` of some of them, means over the samples of each prompt."""
        ...


def updates(policy: Policy, reference: Policy | None, settings: Optimize, tools: Tools, seed: int) -> Updates:
    """The way to learn that the objective takes: from scored samples, or through the sampling itself."""
    objective, _ = settings.objective.part("objective", "optimize.objective")
    if objective.feedback == "Pathwise":
        return PathwiseUpdates(policy, settings, seed)
    return SampledUpdates(policy, reference, settings, tools, seed)


class SampledUpdates:
    """The scored samples of the step at hand, and the loss of those that share a forward pass."""

    def __init__(self, policy: Policy, reference: Policy | None, settings: Optimize, tools: Tools, seed: int) -> None:
        assert settings.online is not None
        self.policy, self.reference, self.tools, self.seed = policy, reference, tools, seed
        self.online, self.at_once = settings.online, settings.per_device_train_batch_size
        self.objective, self.chosen = settings.objective.part("objective", "optimize.objective")
        self.advantage, self.advantages = self.online.advantage.part("advantage", "optimize.online.advantage")
        self.held: dict[str, Samples] = {}  # by the prompts of a forward pass
        self.name = ""  # of the step

    def begin(self, batch: Sequence[Prompt], epoch: int) -> None:
        """Draw and score the samples of all prompts of a step; an update that repeats the step keeps them."""
        name = step_name(self.seed, epoch, batch)
        if name == self.name:
            return
        parts = [batch[i : i + self.at_once] for i in range(0, len(batch), self.at_once)]
        drawn = [draw(self.policy, part, self.online, self.tools, self.seed, epoch) for part in parts]
        if "advantage" in self.objective.spec.needs:
            whole = outcomes(torch.cat([samples.reward for samples in drawn]))
            advantage = self.advantage.function(whole, **self.advantages).detach()
            for samples, values in zip(drawn, advantage.split(list(map(len, parts))), strict=True):
                samples.advantage = values
        self.held, self.name = dict(zip(map(together, parts), drawn, strict=True)), name

    def loss(self, batch: Sequence[Prompt], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's losses and statistics, with the mean reward of each prompt and its spread."""
        samples = self.held[together(batch)]
        steps = priced(self.policy, self.reference, samples, self.objective.spec.needs)
        groups = grouped(steps, samples.reward, samples.advantage)
        losses, stats = self.objective.function(groups, **self.chosen)
        reward = {"reward": groups.reward.mean(-1), "reward_std": groups.reward.std(-1)}
        return by_prompt(losses, {**stats, **reward}, len(batch))


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


def seed_of(seed: int, epoch: int) -> int:
    """The seed of an epoch's samples: they differ from those of other epochs, and of the stages before."""
    return seed + 1_000_003 * (epoch + 1)


def together(prompts: Sequence[Prompt]) -> str:
    """A name of these prompts."""
    return ",".join(prompt.id for prompt in prompts)


def step_name(seed: int, epoch: int, prompts: Sequence[Prompt]) -> str:
    """A name of the step of an epoch that takes these prompts."""
    return f"{seed_of(seed, epoch)}:{together(prompts)}"


def draw(policy: Policy, prompts: Sequence[Prompt], online: Online, tools: Tools, seed: int, epoch: int) -> Samples:
    """K samples of each prompt with their scores; another epoch draws others."""
    drawn = policy.sample(prompts, online.num_generations, seed=seed_of(seed, epoch), **online.sampler)
    scored = labelling.score(online, labelling.align(list(prompts), drawn), drawn, tools)
    reward = torch.tensor([0.0 if c.score is None else c.score for c in scored], device=policy.device)
    by_id = {prompt.id: prompt for prompt in prompts}
    items = [item(by_id[c.prompt], c, epoch) for c in drawn]
    return Samples(items, reward.view(len(prompts), -1))


def item(prompt: Prompt, candidate: Candidate, epoch: int) -> Item:
    """A sample to be priced; the samples of a prompt share their draw."""
    return Item(candidate.id, prompt.messages, labelling.completion(candidate), f"{prompt.id}~{epoch}")


def priced(policy: Policy, reference: Policy | None, samples: Samples, needs: tuple[str, ...]) -> Steps:
    """Steps of the samples with what the objective needs beside the log-probs."""
    wanted = reference if {"reference", "kl"} & set(needs) else None
    steps = policy.log_probs(samples.items, entropy="entropy" in needs, reference=wanted)
    samples.old = steps.logp.detach() if samples.old is None else samples.old
    return replace(steps, old=samples.old)


def grouped(steps: Steps, reward: Tensor, advantage: Tensor | None = None) -> Groups:
    """Rows `[g*k,...]` as groups `[g,k,...]`."""
    split = {name: value.unflatten(0, reward.shape) for name, value in vars(steps).items() if value is not None}
    valid = torch.ones_like(reward, dtype=torch.bool)
    return Groups(Steps(**split), reward=reward, valid=valid, advantage=advantage)


def outcomes(reward: Tensor) -> Groups:
    """Rewards `[g,k]` of finished samples as groups, each sample one step: what an advantage is made of."""
    flat = reward.flatten()[:, None]
    return grouped(Steps(torch.zeros_like(flat), torch.ones_like(flat, dtype=torch.bool)), reward)


def by_prompt(losses: Tensor, stats: dict[str, Tensor], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Means over whatever a prompt has several of: `[count,...]` or `[count * k]` -> `[count]`."""
    return (
        losses.reshape(count, -1).mean(-1),
        {name: value.detach().reshape(count, -1).float().mean(-1) for name, value in stats.items()},
    )


def pathwise(policy: Policy, prompts: Sequence[Prompt], online: Online, seed: int, epoch: int, name: str) -> Pathwise:
    """Sampling and scoring as functions that a gradient goes through; `name` is the step's."""
    k = online.num_generations
    asked = [prompt for prompt in prompts for _ in range(k)]
    seats = [seat for seat in panel.seats(online, "reward", where="params.yaml optimize.online") if seat.weight]

    def sample(grad_steps: int) -> Tensor:
        return policy.differentiable_sample(  # type: ignore[attr-defined]
            prompts, k=k, seed=seed_of(seed, epoch), grad_steps=grad_steps
        )

    def reward(images: Tensor) -> Tensor:
        total = torch.zeros(len(images), device=images.device)
        for seat in seats:
            function = differentiable(seat.part)
            assert function is not None
            total = total + seat.weight * labelling.unit(seat.part.spec, function(images, asked, **seat.settings))
        return total / sum(seat.weight for seat in seats)

    return Pathwise(sample, reward, steps=policy.steps, name=name)  # type: ignore[attr-defined]
