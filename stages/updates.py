"""What an online update is: from the scored samples of the policy, with labelled pairs beside them, or through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from stages import feed
from stages.average import Average
from stages.batches import Groups, Hybrid, Item, Pairs, Steps
from stages.panel import Tools
from stages.pathwise import PathwiseUpdates
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
    from stages.learn import Optimize
    from stages.policies.family import Policy


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
