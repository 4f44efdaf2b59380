"""Policies that are tables, for claims about objectives that learn from the policy's own samples: two exact problems.

A token problem (one target string to a prompt, the reward is the share of right tokens) that is trained on, and a
bandit whose policy gradient is a sum over all answers, against which single estimates of it are held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stages import parts
from stages.batches import Groups, Steps
from stages.policies.tabular import Tabular

Loss = Callable[[Groups], Tensor]  # of the samples of all prompts, a number
PROMPTS, LENGTH, TOKENS = 12, 8, 6


def grouped(logp: Tensor, reward: Tensor, ref: Tensor) -> Groups:
    """Samples `[g,k,t]` of the policy itself."""
    there = torch.ones_like(reward, dtype=torch.bool)
    steps = Steps(logp, torch.ones_like(logp, dtype=torch.bool), ref=ref, old=logp.detach())
    return Groups(steps, reward=reward, valid=there)


def by_part(objective: str, advantage: str, **settings: Any) -> Loss:
    """The mean loss of an objective with the advantage that it is taught with."""
    chosen, worth = parts.find("objective", objective).function, parts.find("advantage", advantage).function
    return lambda batch: chosen(replace(batch, advantage=worth(batch)), **settings)[0].mean()


def reinforce(batch: Groups) -> Tensor:
    """REINFORCE without a baseline: the reward itself weighs the answer."""
    return -(batch.reward[..., None] * batch.steps.logp).sum(-1).mean()


def learned(loss: Loss, seed: int, *, offset: float, updates: int = 250, k: int = 4) -> float:
    """Mean probability of the target's tokens after some steps of Adam from the uniform policy, the reference.

    Args:
        loss: of k fresh samples of every prompt.
        seed: of the targets and the samples.
        offset: what every reward has on top of the share of right tokens.
        updates: how many steps.
        k: samples of a prompt.
    """
    noise = torch.Generator().manual_seed(seed)
    target = torch.randint(TOKENS, (PROMPTS, LENGTH), generator=noise)
    logits = torch.zeros(PROMPTS, LENGTH, TOKENS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.03)
    uniform = torch.full((PROMPTS, k, LENGTH), 1 / TOKENS, dtype=torch.float64).log()
    for _ in range(updates):
        table = logits.log_softmax(-1)
        drawn = torch.multinomial(table.detach().exp().flatten(0, 1), k, replacement=True, generator=noise)
        drawn = drawn.view(PROMPTS, LENGTH, k)  # each place of a sample is drawn by itself
        reward = (drawn == target[..., None]).double().mean(1) + offset  # [g,k]
        logp = table.gather(-1, drawn).transpose(1, 2)  # [g,k,t]
        optimizer.zero_grad()
        loss(grouped(logp, reward, uniform)).backward()
        optimizer.step()
    return float(logits.detach().softmax(-1).gather(-1, target[..., None]).mean())


def estimated(loss: Loss, seed: int, *, offset: float, draws: int = 4000, k: int = 4) -> dict[str, float]:
    """How far single estimates of a bandit's policy gradient lie apart, and their mean from the exact gradient.

    Eight prompts of twelve answers, a random policy, standard normal rewards.

    Args:
        loss: of k samples of every prompt: one estimate.
        seed: of the bandit and the samples; the same for every loss and offset.
        offset: deviation of what all rewards of a prompt have on top.
        draws: how many estimates.
        k: samples of a prompt.

    Returns:
        `variance`, summed over all logits, and `bias`, the largest of any logit.
    """
    noise = torch.Generator().manual_seed(seed)
    values, hidden, above = (torch.randn(8, n, generator=noise, dtype=torch.float64) for n in (12, 12, 1))
    values = values + offset * above
    policy = Tabular.from_logits(hidden.repeat(draws, 1), vocabulary=12, length=1)  # a copy for each estimate
    prompts = torch.arange(8 * draws)
    drawn = policy.sample(prompts, k, seed=seed).squeeze(-1)  # [g,k]
    logp = policy.sequence_log_probs().gather(-1, drawn)[..., None]
    reward = values.repeat(draws, 1).gather(-1, drawn)
    loss(grouped(logp, reward, logp.detach())).backward()
    assert policy.logits.grad is not None
    found = (policy.logits.grad * len(prompts)).view(draws, 8, 12)
    pi = hidden.softmax(-1)
    exact = -pi * (values - (pi * values).sum(-1, keepdim=True))
    return {"variance": float(found.var(0).sum()), "bias": float((found.mean(0) - exact).abs().max())}
