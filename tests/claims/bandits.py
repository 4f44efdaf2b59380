"""Bandits whose optimum is known, for claims about objectives that learn from preferences: some seeds at once.

A bandit has `g` prompts with `a` arms each, features, a true reward that is linear in them, and a reference policy.
Pairs are drawn of it, a policy is fitted to them through a real objective, and what came of it is summed over all arms.
Seeds never meet: their parameters are their own and Adam works on each number by itself, so all are fitted as one.

    world = bandits.make(range(5))                       # or `covered`, where half of the arms are in no pair
    pairs = bandits.duels(world, 2000)                   # or `flipped(pairs, 0.3)`, or `expected(world)`: no draws
    policy = bandits.fit(world, bandits.by_part(world, pairs, "dpo", beta=0.5))
    bandits.reward(world, policy)                        # E[r] of each seed, `[s]`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages import parts
from stages.batches import Pairs, Singles, Steps

Loss = Callable[[Tensor], Tensor]  # of a policy's log-probs [s,g,a], a number: the sum over seeds


@dataclass(frozen=True)
class Bandit:
    """`s` bandits, one a seed."""

    seeds: tuple[int, ...]
    features: Tensor  # [s,g,a,d]
    reward: Tensor  # [s,g,a] the true one
    ref: Tensor  # [s,g,a] log-probs of the reference


@dataclass(frozen=True)
class Duels:
    """Pairs of arms of all seeds in one list; the weights of a seed sum to 1."""

    row: Tensor  # [b] seed * g + prompt
    chosen: Tensor  # [b] arm
    rejected: Tensor  # [b] arm
    weight: Tensor  # [b]
    prob: Tensor | None = None  # [b] P(chosen is preferred), 1 where absent


def make(
    seeds: Sequence[int],
    *,
    prompts: int = 32,
    arms: int = 16,
    dims: int = 8,
    scale: float = 2.0,
    spread: float = 0.7,
) -> Bandit:
    """Standard normal features, a reward of deviation `scale`, reference logits of deviation `spread`."""
    made = []
    for seed in seeds:
        noise = torch.Generator().manual_seed(seed)
        direction = torch.randn(dims, generator=noise, dtype=torch.float64)
        features = torch.randn(prompts, arms, dims, generator=noise, dtype=torch.float64)
        logits = spread * torch.randn(prompts, arms, generator=noise, dtype=torch.float64)
        made.append((features, features @ F.normalize(direction, dim=0) * scale, logits.log_softmax(-1)))
    return Bandit(tuple(seeds), *(torch.stack(each) for each in zip(*made)))


def covered(
    seeds: Sequence[int], *, known: int = 8, scale: float = 2.0, lure: float = 2.5, bad: float = -2.0
) -> tuple[Bandit, Tensor]:
    """A bandit of which half of the arms are in no pair, look good to a linear fit and are bad.

    Their features lie along the true direction, their reward is `bad`, and the reference gives them little (logit
    -2.5 beside 0).

    Args:
        seeds: one a bandit.
        known: how many arms of a prompt may be drawn.
        scale: deviation of their rewards.
        lure: length of the features of the others along the true direction.
        bad: reward of the others.

    Returns:
        The bandit and the log-probs `[s,g,a]` that pairs are drawn with: the reference's on the known arms.
    """
    world = make(seeds, scale=scale)
    features, reward, logits = world.features.clone(), world.reward.clone(), torch.zeros_like(world.ref)
    for index, seed in enumerate(seeds):
        direction = torch.randn(features.shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        features[index, :, known:] = features[index, :, known:] / 2 + lure * F.normalize(direction, dim=0)
    reward[..., known:], logits[..., known:] = bad, -2.5
    behaviour = logits.index_fill(-1, torch.arange(known, logits.shape[-1]), -torch.inf)
    return replace(world, features=features, reward=reward, ref=logits.log_softmax(-1)), behaviour.log_softmax(-1)


def duels(world: Bandit, n: int, *, behaviour: Tensor | None = None, salt: int = 1) -> Duels:
    """`n` pairs of two different arms a seed, of random prompts, told apart as Bradley and Terry do.

    Args:
        world: what they are drawn of.
        n: pairs of each seed.
        behaviour: log-probs `[s,g,a]` to draw arms with; the reference's by default.
        salt: another number, other pairs: a validation set, say.
    """
    s, g, _ = world.reward.shape
    rows, firsts, seconds = [], [], []
    for index, seed in enumerate(world.seeds):
        noise = torch.Generator().manual_seed(1000 * salt + seed)
        prompt = torch.randint(g, (n,), generator=noise)
        drawn = (world.ref if behaviour is None else behaviour)[index, prompt].exp()
        two = torch.multinomial(drawn, 2, generator=noise)  # [n,2] without replacement
        gap = world.reward[index, prompt].gather(-1, two).diff(dim=-1).squeeze(-1)  # second minus first
        turned = torch.rand(n, generator=noise, dtype=torch.float64) < torch.sigmoid(gap)
        two = torch.where(turned[:, None], two.flip(-1), two)
        rows.append(index * g + prompt)
        firsts.append(two[:, 0])
        seconds.append(two[:, 1])
    weight = torch.full((s * n,), 1 / n, dtype=torch.float64)
    return Duels(torch.cat(rows), torch.cat(firsts), torch.cat(seconds), weight)


def expected(world: Bandit, *, behaviour: Tensor | None = None) -> Duels:
    """All pairs with their exact probability and the weight that the behaviour draws them with: no sampling noise."""
    s, g, a = world.reward.shape
    first, second = torch.triu_indices(a, a, 1)
    pi = (world.ref if behaviour is None else behaviour).exp().flatten(0, 1)  # [s*g,a]
    weight = pi[:, first] * pi[:, second]
    weight = weight / weight.view(s, -1).sum(-1).repeat_interleave(g)[:, None]
    reward = world.reward.flatten(0, 1)
    prob = torch.sigmoid(reward[:, first] - reward[:, second])
    row = torch.arange(s * g).repeat_interleave(len(first))
    return Duels(row, first.repeat(s * g), second.repeat(s * g), weight.flatten(), prob.flatten())


def flipped(pairs: Duels, rate: float | Tensor, *, seed: int = 0) -> Duels:
    """Every label turned with this probability, one number or one a pair, independently."""
    noise = torch.Generator().manual_seed(seed)
    turned = torch.rand(pairs.row.shape, generator=noise, dtype=torch.float64) < rate
    chosen, rejected = pairs.chosen, pairs.rejected
    return replace(pairs, chosen=torch.where(turned, rejected, chosen), rejected=torch.where(turned, chosen, rejected))


def merged(pairs: Duels, arms: int) -> Duels:
    """Equal pairs as one of their summed weight: 20,000 pairs of 16 arms are a fifth as many."""
    if pairs.prob is not None:
        return pairs
    cell = (pairs.row * arms + pairs.chosen) * arms + pairs.rejected
    kept, home = cell.unique(return_inverse=True)
    weight = torch.zeros(len(kept), dtype=torch.float64).index_add_(0, home, pairs.weight)
    return Duels(kept // arms**2, kept // arms % arms, kept % arms, weight)


def steps(logp: Tensor, ref: Tensor, place: Tensor) -> Steps:
    """Arms as answers of one step; `place` `[b]` finds them in the flat tables."""
    taken = logp.flatten().index_select(0, place)[:, None]
    return Steps(taken, torch.ones_like(taken, dtype=torch.bool), ref=ref.flatten()[place][:, None])


def batch(world: Bandit, pairs: Duels, logp: Tensor) -> Pairs:
    """Pairs as an objective takes them, with the log-probs of a policy."""
    arms = logp.shape[-1]
    chosen, rejected = (steps(logp, world.ref, pairs.row * arms + arm) for arm in (pairs.chosen, pairs.rejected))
    return Pairs(chosen, rejected, prob=pairs.prob)


def by_seed(world: Bandit, pairs: Duels, values: Tensor) -> Tensor:
    """The weighted mean of a figure `[b]` of pairs: `[s]`."""
    s, g, _ = world.ref.shape
    return torch.zeros(s, dtype=values.dtype).index_add_(0, pairs.row // g, pairs.weight * values)


def by_part(world: Bandit, pairs: Duels, objective: str, **settings: Any) -> Loss:
    """The mean loss of a pairwise objective."""
    part, kept = parts.find("objective", objective), merged(pairs, world.ref.shape[-1])
    assert not part.spec.couples, f"{objective}: seeds would meet in one batch; fit them one by one"
    return lambda logp: (kept.weight * part.function(batch(world, kept, logp), **settings)[0]).sum()


def by_singles(world: Bandit, arm: Tensor, row: Tensor, label: Tensor, objective: str, **settings: Any) -> Loss:
    """The mean loss of an objective that takes single arms, of one seed; the mismatch is the batch rotated by one.

    Args:
        world: of one seed, see `one`.
        arm: `[b]`.
        row: prompts `[b]`.
        label: `[b]` bool, True where desirable.
        objective: name of the part.
        settings: of it.
    """
    assert len(world.seeds) == 1, "examples of a batch may meet: one seed at a time"
    part, arms = parts.find("objective", objective), world.ref.shape[-1]
    own, other = row * arms + arm, row * arms + arm.roll(1)

    def loss(logp: Tensor) -> Tensor:
        mismatch = steps(logp.detach(), world.ref, other)
        return part.function(Singles(steps(logp, world.ref, own), label, mismatch=mismatch), **settings)[0].mean()

    return loss


def sft(world: Bandit, pairs: Duels) -> Loss:
    """The mean likelihood loss of the chosen arms."""
    part, kept = parts.find("objective", "nll"), merged(pairs, world.ref.shape[-1])
    place = kept.row * world.ref.shape[-1] + kept.chosen
    return lambda logp: (kept.weight * part.function(Singles(steps(logp, world.ref, place)))[0]).sum()


def one(world: Bandit, index: int) -> Bandit:
    """The bandit of one seed alone."""
    kept = slice(index, index + 1)
    return Bandit(world.seeds[kept], world.features[kept], world.reward[kept], world.ref[kept])


def fit(
    world: Bandit,
    loss: Loss,
    *,
    tabular: bool = False,
    updates: int = 300,
    lr: float = 0.05,
    watch: Callable[[int, Tensor], None] = lambda update, logp: None,
) -> Tensor:
    """Log-probs `[s,g,a]` of a policy after some steps of Adam from the reference.

    Args:
        world: the bandit.
        loss: of the policy's log-probs.
        tabular: whether every logit is free; else logits = log ref + features @ theta.
        updates: how many steps.
        lr: of Adam.
        watch: is shown the policy before every step and after the last.
    """
    s, _, _, d = world.features.shape
    theta = torch.zeros(world.ref.shape if tabular else (s, d), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=lr)

    def table() -> Tensor:
        moved = theta if tabular else torch.einsum("sgad,sd->sga", world.features, theta)
        return (world.ref + moved).log_softmax(-1)

    for update in range(updates):
        logp = table()
        watch(update, logp.detach())
        optimizer.zero_grad()
        loss(logp).backward()
        optimizer.step()
    watch(updates, table().detach())
    return table().detach()


def optimum(world: Bandit, beta: float) -> Tensor:
    """Log-probs of ref * exp(r / beta) / Z, which maximizes E[r] - beta * KL."""
    return (world.ref + world.reward / beta).log_softmax(-1)


def reward(world: Bandit, logp: Tensor) -> Tensor:
    """E[r] over the policy, the mean over prompts: `[s]`."""
    return (logp.exp() * world.reward).sum(-1).mean(-1)


def kl(logp: Tensor, other: Tensor) -> Tensor:
    """KL(policy || other) in nats, the mean over prompts: `[s]`."""
    return (logp.exp() * (logp - other)).nan_to_num(0.0).sum(-1).mean(-1)


def regret(world: Bandit, logp: Tensor, beta: float) -> Tensor:
    """By how much E[r] - beta * KL(policy || ref) is below that of the optimum: `[s]`, never negative."""
    return beta * kl(logp, optimum(world, beta))  # the two differ by exactly this


def entropy(logp: Tensor) -> Tensor:
    """In nats, the mean over prompts: `[s]`."""
    return -(logp.exp() * logp).nan_to_num(0.0).sum(-1).mean(-1)


def share(logp: Tensor, arms: slice) -> Tensor:
    """The probability of some arms, the mean over prompts: `[s]`."""
    return logp.exp()[..., arms].sum(-1).mean(-1)


def variation(logp: Tensor, other: Tensor) -> Tensor:
    """Total variation distance, the mean over prompts: `[s]`."""
    return (logp.exp() - other.exp()).abs().sum(-1).mean(-1) / 2


def told(figures: Mapping[str, Tensor | Sequence[float]]) -> list[dict[str, float]]:
    """Figures `[s]` by name as `measure` takes them: a dictionary of each seed."""
    return [dict(zip(figures, map(float, each))) for each in zip(*figures.values())]
