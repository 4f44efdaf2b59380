"""Online optimization: every step samples the policy, scores what it drew, and learns from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from stages import feed, loop, panel
from stages.average import Average
from stages.batches import Groups, Hybrid, Item, Pairs, Steps
from stages.config import Choice, Run
from stages.errors import UserError
from stages.panel import Panel, Tools
from stages.parts import Part
from stages.pathwise import PathwiseUpdates, differentiable
from stages.policies.family import check_sampling
from stages.records import Pair, Prompt
from stages.reduce import average
from stages.samples import (
    Pass,
    Samples,
    by_prompt,
    draw,
    ended,
    grouped,
    learned,
    mean_length,
    outcomes,
    step_name,
    together,
    untied,
)

if TYPE_CHECKING:
    from stages.cached import Cache
    from stages.journal import Journal
    from stages.learn import Optimize
    from stages.policies.family import Policy
    from stages.watch import Watcher


class Online(Panel):
    """The node `optimize.online`: who scores the samples, and how many there are; TRL's names.

    `per_device_train_batch_size` of `optimize` counts prompts; pairs, where the objective learns from those as well.
    """

    num_generations: Annotated[int, Field(ge=2)] = 8  # K samples of a prompt
    num_iterations: Annotated[int, Field(ge=1)] = 1  # updates on the same samples
    advantage: Choice = Choice(name="group")
    ties: Literal["keep", "drop"] = "keep"  # drop: a prompt whose samples all score alike leaves the step and its mean
    mask_truncated_completions: bool = False  # a sample that was cut off has its reward, and no step is learned from
    ema_beta: Annotated[float, Field(ge=0)] = 0.0  # pull towards a moving average of the policy, see stages/average.py
    sampler: dict[str, Any] = Field(default_factory=dict)  # settings of the policy's own sampling


def check(objective: Part, settings: Online | None, family: str, *, where: str) -> None:
    """The node `online` is there for an objective that learns online, and everybody in it exists.

    Raises:
        UserError: naming what is missing or wrong.
    """
    hybrid = objective.feedback == "Hybrid"
    if settings is None:
        node = "{num_generations: 4}` beside it" if hybrid else "{rewards: ...}` beside it: who scores the samples"
        raise UserError(f"objective '{objective.name}' learns online", where=where, mend=f"add `online: {node}")
    where = f"{where}.online"
    check_sampling(settings.sampler, family, where=f"{where}.sampler")
    if hybrid:
        rest = set(Online.model_fields) - {"num_generations", "sampler"}
        untouched(settings, rest, f"objective '{objective.name}' samples anew each step and nobody scores it", where)
        return
    seats = panel.check(settings, where=where, family=family)
    settings.advantage.part("advantage", f"{where.removeprefix('params.yaml ')}.advantage")
    if settings.ema_beta and "kl" not in objective.spec.needs:
        what = f"objective '{objective.name}' measures no divergence, and none from a moving average"
        raise UserError(what, where=f"{where}.ema_beta", mend="remove it, or choose awm or flow_grpo")
    if objective.feedback == "Pathwise":
        what = f"objective '{objective.name}' samples anew for every update, as run.policy says"
        untouched(settings, {"num_iterations", "sampler", "ties", "mask_truncated_completions"}, what, where)
        for seat in seats:
            if seat.weight and differentiable(seat.part) is None:
                what = f"{seat.part.kind} '{seat.part.name}' has no gradient with respect to the image"
                raise UserError(what, where=seat.where, mend="choose one whose file defines `pixels`")


def untouched(settings: Online, names: set[str], why: str, where: str) -> None:
    """None of these settings is set: they would do nothing.

    Raises:
        UserError: one is.
    """
    for name in sorted(names):
        if getattr(settings, name) != Online.model_fields[name].get_default(call_default_factory=True):
            raise UserError(why, where=f"{where}.{name}", mend="remove it")


def compares(objective: Part, chosen: dict[str, Any]) -> bool:
    """Whether samples are priced under the reference too."""
    needs = set(objective.needs(chosen))
    return bool({"reference", "kl"} & needs) and (objective.feedback != "Hybrid" or "samples" in needs)


def learn(
    policy: Policy,
    reference: Policy | None,
    prompts: Sequence[Prompt] | Sequence[Pair],
    settings: Optimize,
    tools: Tools,
    *,
    run: Run,
    scratch: Path,
    journal: Journal,
    watch: Watcher | None = None,
    cache: Cache | None = None,
) -> dict[str, float]:
    """Train a policy in place on its own samples.

    Args:
        policy: samples and learns.
        reference: what objectives that need it stay close to.
        prompts: what it answers, a batch of them a step; pairs, for an objective that learns from those as well.
        settings: the objective, the loop's settings, and `online`.
        tools: what the panel needs.
        run: its seed names the samples.
        scratch: where checkpoints lie.
        journal: where metrics go.
        watch: called after each step.
        cache: reference log-probs of the pairs.
    """
    assert settings.online is not None
    behind = Average(policy) if settings.online.ema_beta else None
    learner = updates(policy, reference, settings, tools, run.seed, behind, cache)
    return loop.train(
        behind or policy,
        prompts,
        learner.loss,
        settings,
        seed=run.seed,
        scratch=scratch,
        journal=journal,
        size=lambda one: max(item.size for item in feed.items(one)) if isinstance(one, Pair) else 0,
        label="online",
        repeats=settings.online.num_iterations,
        begin=learner.begin,
        watch=behind.watched(watch) if behind else watch,
    )


class Updates(Protocol):
    """What the loop asks of a way to learn from the policy's own samples."""

    def begin(self, batch: Sequence[Any], epoch: int) -> None:
        """A step begins, with all of its prompts or pairs."""
        ...

    def loss(self, batch: Sequence[Any], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Losses `[b]` and statistics `[b]` of some of them, means over the samples of each prompt."""
        ...


def updates(
    policy: Policy,
    reference: Policy | None,
    settings: Optimize,
    tools: Tools,
    seed: int,
    behind: Average | None = None,
    cache: Cache | None = None,
) -> Updates:
    """The way to learn that the objective takes: from scored samples, with pairs, or through the sampling itself."""
    objective, _ = settings.objective.part("objective", "optimize.objective")
    if objective.feedback == "Hybrid":
        return HybridUpdates(policy, reference, settings, cache, seed)
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
        length = mean_length(drawn, weight, truncated=not self.online.mask_truncated_completions)
        for samples in drawn:
            samples.length = length
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
        if self.online.mask_truncated_completions:
            steps = replace(steps, mask=steps.mask & ended(samples.items, steps.mask.device)[:, None])
        groups = grouped(steps, samples.reward, samples.advantage, samples.length)
        losses, stats = self.objective.function(groups, **self.chosen)
        losses, stats = by_prompt(losses, stats, len(held.rows))
        if self.behind is not None:
            away, _ = by_prompt(divergence(self.policy, self.behind.copy, samples.items), {}, len(held.rows))
            losses, stats = losses + self.online.ema_beta * away, stats | {"ema_kl": away.detach()}
        stats = {name: held.spread(values) for name, values in stats.items()}
        reward = {"reward": held.reward.mean(-1), "reward_std": held.reward.std(-1)}
        return held.spread(losses), stats | reward


class HybridUpdates:
    """Labelled pairs, and fresh samples of the policy for the prompt of each, which nobody scores."""

    def __init__(
        self, policy: Policy, reference: Policy | None, settings: Optimize, cache: Cache | None, seed: int
    ) -> None:
        assert settings.online is not None
        self.policy, self.reference, self.cache, self.seed = policy, reference, cache, seed
        self.online, self.soft = settings.online, settings.soft_labels
        self.at_once = settings.per_device_train_batch_size
        self.objective, self.chosen = settings.objective.part("objective", "optimize.objective")
        self.needs = self.objective.needs(self.chosen)
        self.held: dict[str, Samples] = {}  # by the first pair of a forward pass

    def begin(self, batch: Sequence[Pair], epoch: int) -> None:
        """Draw the samples for all pairs of a step, unless the settings ask for none."""
        self.held.clear()
        for start in range(0, len(batch) if "samples" in self.needs else 0, self.at_once):
            part = batch[start : start + self.at_once]
            prompts = [Prompt(id=pair.id, messages=pair.messages) for pair in part]
            self.held[part[0].id] = draw(self.policy, prompts, self.online, Tools(), self.seed, epoch)

    def loss(self, batch: Sequence[Pair], epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's losses and statistics of each pair and the samples of its prompt."""
        labelled = tuple(need for need in self.needs if need != "behaviour")  # that of the samples is the policy itself
        pairs = feed.batch(self.policy, batch, labelled, self.cache, soft=self.soft)
        assert isinstance(pairs, Pairs)
        samples = self.held.get(batch[0].id)
        drawn: Groups | None = None
        if samples is not None:
            drawn = grouped(priced(self.policy, self.reference, samples, self.needs), samples.reward)
        found: tuple[Tensor, dict[str, Tensor]] = self.objective.function(Hybrid(pairs, drawn), **self.chosen)
        return found


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
