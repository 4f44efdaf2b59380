"""Online optimization: every step samples the policy, scores what it drew, and learns from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from stages import labelling, loop, panel
from stages.batches import Groups, Item, Pathwise, Steps
from stages.config import Choice, Run
from stages.errors import UserError
from stages.panel import Panel, Tools
from stages.parts import Part
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
    """What a step learns from; kept for the updates that share it."""

    items: list[Item]
    reward: Tensor  # [g,k]
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
    if objective.feedback == "Pathwise":
        for seat in seats:
            if seat.weight and differentiable(seat.part) is None:
                what = f"{seat.part.kind} '{seat.part.name}' has no gradient with respect to the image"
                raise UserError(what, where=seat.where, mend="choose one whose file defines `pixels`")


def differentiable(reward: Part) -> Callable[..., Tensor] | None:
    """The reward as a function of pixels, where its file defines one."""
    return getattr(__import__(reward.function.__module__, fromlist=["pixels"]), "pixels", None)


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
    online = settings.online
    assert online is not None
    objective, chosen = settings.objective.part("objective", "optimize.objective")
    advantage, advantages = online.advantage.part("advantage", "optimize.online.advantage")
    held: dict[tuple[int, tuple[str, ...]], Samples] = {}

    def loss(batch: Sequence[Prompt], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        if objective.feedback == "Pathwise":
            losses, stats = objective.function(pathwise(policy, batch, online, run.seed, epoch), **chosen)
            return by_prompt(losses, stats, len(batch))
        key = (epoch, tuple(prompt.id for prompt in batch))
        if key not in held:
            if len(held) >= settings.gradient_accumulation_steps:
                held.clear()
            held[key] = draw(policy, batch, online, tools, run.seed, epoch)
        steps = priced(policy, reference, held[key], objective.spec.needs)
        groups = grouped(steps, held[key].reward)
        if "advantage" in objective.spec.needs:
            groups = replace(groups, advantage=advantage.function(groups, **advantages).detach())
        losses, stats = objective.function(groups, **chosen)
        reward = {"reward": groups.reward.mean(-1), "reward_std": groups.reward.std(-1)}
        return by_prompt(losses, {**stats, **reward}, len(batch))

    return loop.train(
        policy,
        prompts,
        loss,
        settings,
        seed=run.seed,
        scratch=scratch,
        journal=journal,
        size=lambda prompt: 0,
        label="online",
        repeats=1 if objective.feedback == "Pathwise" else online.num_iterations,
        watch=watch,
    )


def draw(policy: Policy, prompts: Sequence[Prompt], online: Online, tools: Tools, seed: int, epoch: int) -> Samples:
    """K samples of each prompt with their scores; another epoch draws others."""
    drawn = policy.sample(prompts, online.num_generations, seed=seed + 1_000_003 * (epoch + 1), **online.sampler)
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


def grouped(steps: Steps, reward: Tensor) -> Groups:
    """Rows `[g*k,...]` as groups `[g,k,...]`."""
    split = {name: value.unflatten(0, reward.shape) for name, value in vars(steps).items() if value is not None}
    return Groups(Steps(**split), reward=reward, valid=torch.ones_like(reward, dtype=torch.bool))


def by_prompt(losses: Tensor, stats: dict[str, Tensor], count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Means over whatever a prompt has several of: `[count,...]` or `[count * k]` -> `[count]`."""
    return (
        losses.reshape(count, -1).mean(-1),
        {name: value.detach().reshape(count, -1).float().mean(-1) for name, value in stats.items()},
    )


def pathwise(policy: Policy, prompts: Sequence[Prompt], online: Online, seed: int, epoch: int) -> Pathwise:
    """Sampling and scoring as functions that a gradient goes through."""
    k = online.num_generations
    asked = [prompt for prompt in prompts for _ in range(k)]
    named = seed + 1_000_003 * (epoch + 1)

    def sample(grad_steps: int) -> Tensor:
        return policy.differentiable_sample(prompts, k=k, seed=named, grad_steps=grad_steps)  # type: ignore[attr-defined]

    def reward(images: Tensor) -> Tensor:
        seats = [seat for seat in panel.seats(online, "reward", where="params.yaml optimize.online") if seat.weight]
        total = torch.zeros(len(images), device=images.device)
        for seat in seats:
            function = differentiable(seat.part)
            assert function is not None
            assert seat.part.spec.range is not None
            low, high = seat.part.spec.range
            value = (function(images, asked, **seat.settings) - low) / (high - low)
            total = total + seat.weight * (value if seat.part.spec.higher else 1 - value)
        return total / sum(seat.weight for seat in seats)

    name = f"{named}:{','.join(prompt.id for prompt in prompts)}"
    return Pathwise(sample, reward, steps=policy.steps, name=name)  # type: ignore[attr-defined]
