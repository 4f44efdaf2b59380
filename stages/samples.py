"""Samples that a policy learns from online: drawn, scored, grouped by prompt, told apart by what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages import labelling
from stages.batches import Groups, Item, Steps
from stages.pairs import completion
from stages.panel import Tools
from stages.records import Candidate, Prompt

if TYPE_CHECKING:
    from stages.online import Online
    from stages.policies.family import Policy


@dataclass
class Samples:
    """The samples of some prompts; kept for the updates that share them."""

    items: list[Item]
    reward: Tensor  # [g,k]
    advantage: Tensor | None = None  # [g,k], of all samples of the step
    old: Tensor | None = None  # [g*k,t], filled by the first update: until then the policy is its own behaviour
    length: Tensor | None = None  # [] mean tokens of all samples that the step learns from

    def of(self, rows: Tensor) -> Samples:
        """Those of some of the prompts, by index `[m]`."""
        k = self.reward.shape[1]
        items = [self.items[row * k + i] for row in rows.tolist() for i in range(k)]
        advantage = None if self.advantage is None else self.advantage[rows]
        return Samples(items, self.reward[rows], advantage, length=self.length)


@dataclass
class Pass:
    """A forward pass of a step: its prompts that are learned from, and what is told of all of them."""

    samples: Samples
    rows: Tensor  # [m] which of the prompts these are the samples of
    weight: Tensor  # [m] of each in the mean over the step's prompts: 1 where none has left it
    reward: Tensor  # [g,k] of all prompts

    def spread(self, values: Tensor) -> Tensor:
        """Values `[m]` by their weight among all prompts, 0 for those that left: `[g]`."""
        return values.new_zeros(len(self.reward)).index_add(0, self.rows, self.weight.to(values) * values)


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
    return Item(candidate.id, prompt.messages, completion(candidate), f"{prompt.id}~{epoch}")


def learned(samples: Samples, weight: Tensor) -> Pass:
    """A forward pass without the prompts of no weight; if none has any, with one, for a gradient of 0."""
    rows = weight.nonzero().flatten() if weight.any() else weight.new_zeros(1, dtype=torch.long)
    return Pass(samples.of(rows), rows, weight[rows], samples.reward)


def untied(reward: Tensor) -> Tensor:
    """Weights `[g]` of a mean over the prompts whose samples differ in reward: 0 for others, and for all of none.

    >>> untied(torch.tensor([[1.0, 1.0], [0.0, 1.0], [2.0, 1.0]]))
    tensor([0.0000, 1.5000, 1.5000])
    """
    differ = (reward != reward[:, :1]).any(-1).to(reward)
    return differ * len(differ) / differ.sum().clamp(min=1)


def ended(items: Sequence[Item], device: torch.device) -> Tensor:
    """Which samples ended by themselves, not by the limit: `[b]` bool."""
    return torch.tensor([item.completion.finished for item in items], device=device)


def mean_length(drawn: Sequence[Samples], weight: Tensor, *, truncated: bool) -> Tensor:
    """Mean tokens `[]` of a step's samples by their prompt's weight `[g]`; truncated ones have 0 if they are masked."""
    items = [item for samples in drawn for item in samples.items]
    tokens = torch.tensor([len(item.completion.tokens) for item in items], device=weight.device)
    tokens = tokens if truncated else tokens * ended(items, weight.device)
    return (weight[:, None] * tokens.view(len(weight), -1)).sum().clamp(min=1) / len(items)


def grouped(steps: Steps, reward: Tensor, advantage: Tensor | None = None, length: Tensor | None = None) -> Groups:
    """Rows `[g*k,...]` as groups `[g,k,...]`."""
    split = {name: value.unflatten(0, reward.shape) for name, value in vars(steps).items() if value is not None}
    valid = torch.ones_like(reward, dtype=torch.bool)
    return Groups(Steps(**split), reward=reward, valid=valid, advantage=advantage, length=length)


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
