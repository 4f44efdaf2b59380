import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.batches import Groups, Steps, apply
from stages.optimize.objectives.prdp import prdp
from stages.policies.tabular import Tabular
from tests.objectives.build import check_slopes, gradients, group, members, minimize, random_batch

INF = math.inf


def test_worked_numbers() -> None:
    """Three rewards 1, 0, 0 at beta = 0.5, h = (1, 0.5, -1): the two pairs ask for 2 and have 0.5 and 2.

    Misses -1.5 and 0: loss 2.25 / 2. Slopes 2 * d / 2: -1.5 for the first, +1.5 for the second, 0 for the third.
    """
    loss, gradient = gradients(prdp, group([1.0, 0.5, -1.0], reward=[1.0, 0.0, 0.0]), beta=0.5, clip=INF)
    assert loss.item() == pytest.approx(1.125)
    assert gradient["steps"].flatten().tolist() == pytest.approx([-1.5, 1.5, 0.0])


@pytest.mark.parametrize("clip", [0.2, INF])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_independent_reference(reduction: str, clip: float) -> None:
    batch, beta = random_batch("Groups", seed=5), 0.9
    loss, slopes, chose = [], [], set()
    for g, (news, refs, olds) in enumerate(zip(*(members(batch, name) for name in ("logp", "ref", "old")))):
        reward = batch.reward[g, batch.valid[g]].tolist()
        size = [len(new) if reduction == "mean" else 1 for new in news]
        low = [[min(max(x, o - clip), o + clip) for x, o in zip(*two)] for two in zip(news, olds)]
        h, hc = ([(math.fsum(x) - math.fsum(r)) / n for x, r, n in zip(xs, refs, size)] for xs in (news, low))
        pairs = [(a, b) for a in range(len(h)) for b in range(len(h)) if reward[a] > reward[b]]
        slope, losses = [[0.0] * len(new) for new in news], []
        for a, b in pairs:
            target = (reward[a] - reward[b]) / beta
            d, dc = h[a] - h[b] - target, hc[a] - hc[b] - target
            free = d**2 > dc**2
            chose.add(free)
            losses.append(max(d**2, dc**2))
            for k, sign in ((a, 1), (b, -1)):
                for t, (x, o) in enumerate(zip(news[k], olds[k])):
                    if free or abs(x - o) <= clip:
                        slope[k][t] += sign * 2 * (d if free else dc) / size[k] / len(pairs) / 5
        loss.append(math.fsum(losses) / len(pairs))
        slopes.append(slope)
    assert len(chose) == (2 if clip < INF else 1)
    found, gradient = gradients(prdp, batch, beta=beta, clip=clip, reduction=reduction)
    torch.testing.assert_close(found, torch.tensor(loss, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)


def test_a_constant_on_the_rewards_of_a_prompt_changes_nothing_at_all() -> None:
    """Rewards in quarters, so that adding 8 is exact."""
    batch = random_batch("Groups")
    batch = replace(batch, reward=(4 * batch.reward).round() / 4)
    moved = replace(batch, reward=batch.reward + 8.0)
    here, there = gradients(prdp, batch), gradients(prdp, moved)
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[1]["steps"], there[1]["steps"])


def test_at_the_reference_it_is_a_pairwise_policy_gradient() -> None:
    """The loss is ((r_a - r_b) / beta)^2 and slopes -+ 2 (r_a - r_b) / beta."""
    loss, gradient = gradients(prdp, group([0.0, 0.0], reward=[0.75, 0.25]), beta=0.1)
    assert loss.item() == pytest.approx(25.0)
    assert gradient["steps"].flatten().tolist() == pytest.approx([-10.0, 10.0])


def test_the_loss_bounds_the_unclipped_one_from_above() -> None:
    batch = random_batch("Groups", b=30)
    settings = {"beta": 0.5}
    assert (prdp(batch, clip=0.1, **settings)[0] >= prdp(batch, clip=INF, **settings)[0]).all()
    assert (prdp(batch, clip=0.1, **settings)[0] > prdp(batch, clip=INF, **settings)[0] + 1e-3).any()


@pytest.mark.parametrize("reward", [[0.5, 0.5], [0.5]])
def test_without_a_pair_there_is_nothing_to_learn(reward: list[float]) -> None:
    loss, gradient = gradients(prdp, group([0.3] * len(reward), reward=reward))
    assert loss.tolist() == [0.0]
    assert (gradient["steps"] == 0).all()
    assert prdp(group([0.3] * len(reward), reward=reward))[1]["rewards/accuracies"].tolist() == [0.5]


def test_only_the_reward_in_units_of_beta_matters() -> None:
    batch = random_batch("Groups")
    scaled = replace(batch, reward=4 * batch.reward)
    torch.testing.assert_close(prdp(batch, beta=0.3)[0], prdp(scaled, beta=1.2)[0])


def test_a_mean_over_steps_is_a_sum_at_a_smaller_beta() -> None:
    """Four steps under `mean` at beta are their sum at beta / 4, with 16 times the loss."""
    batch = random_batch("Groups")
    batch = replace(batch, steps=replace(batch.steps, mask=torch.ones_like(batch.steps.mask)))
    mean, total = prdp(batch, beta=0.8)[0], prdp(batch, beta=0.2, reduction="sum")[0]
    torch.testing.assert_close(16 * mean, total)


def test_statistics() -> None:
    """Rewards 2, 1, 0 and h = (1, 0, 0) at beta = 0.5: gaps 0.5, 0.5 and 0; two in order and one tie."""
    stats = prdp(group([1.0, 0.0, 0.0], reward=[2.0, 1.0, 0.0]), beta=0.5)[1]
    assert stats["rewards/margins"].item() == pytest.approx(1 / 3)
    assert stats["rewards/accuracies"].item() == pytest.approx(5 / 6)


def test_the_trust_region_holds_in_float32_at_the_papers_beta() -> None:
    """1/beta = 33,333 hides a step of 1e-3 in float32; it must still be seen to lie beyond the clip of 1e-4.

    A member that went where its reward asks it to go has no gradient, one that went the other way is pulled back. The
    second has not moved.
    """
    for gone, slope in ((1e-3, 0.0), (-1e-3, -2 / 3e-5)):
        batch = group([gone, 0.0], reward=[1.0, 0.0])
        batch = apply(batch, lambda x: x.detach().float() if x.is_floating_point() else x)
        batch = replace(batch, steps=replace(batch.steps, logp=batch.steps.logp.requires_grad_()))
        _, gradient = gradients(prdp, batch)
        assert gradient["steps"].flatten().tolist() == pytest.approx([slope, 2 / 3e-5], rel=1e-4)


# What it promises at its optimum


def everything(policy: Tabular, reference: Tabular, old: Tabular, reward: Tensor) -> Groups:
    """Every prompt with all its answers as one group."""
    prompts, n = reward.shape
    asked, answers = torch.arange(prompts).repeat_interleave(n), policy.enumerate().repeat(prompts, 1)
    steps = policy.steps(asked, answers, reference)
    steps = replace(steps, old=old.log_probs(asked, answers).detach())
    split = {name: x.unflatten(0, (prompts, n)) for name, x in vars(steps).items() if x is not None}
    return Groups(Steps(**split), reward=reward, valid=torch.ones_like(reward, dtype=torch.bool))


def distance(policy: Tabular, reference: Tabular, tilt: Tensor) -> float:
    """The largest L1 distance of a prompt from ref * exp(tilt) / Z."""
    optimum = torch.softmax(reference.sequence_log_probs() + tilt, -1)
    return (policy.sequence_log_probs().exp() - optimum).abs().sum(-1).max().item()


@pytest.mark.parametrize(("reduction", "times"), [("sum", 1), ("mean", 2)])
def test_its_optimum_is_the_tilted_reference(reduction: str, times: int) -> None:
    """That is ref * exp(r / beta) / Z over answers of two steps; the mean over steps asks for twice the tilt."""
    reference, beta = Tabular.random(2, vocabulary=3, length=2, seed=3), 0.7
    reward = torch.randn(2, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    policy = Tabular(2, vocabulary=3, length=2)

    def loss() -> Tensor:
        batch = everything(policy, reference, policy, reward)
        return prdp(batch, beta=beta, clip=INF, reduction=reduction)[0].mean()

    assert distance(policy, reference, times * reward / beta) > 0.1
    minimize(policy.logits, loss)
    assert loss().item() < 1e-12
    assert distance(policy, reference, times * reward / beta) < 1e-3


def test_proximal_epochs_from_the_reference_arrive_there_too() -> None:
    """The paper's algorithm: theta = ref, then epochs of old = theta and ten updates within the trust region."""
    reference, beta, clip = Tabular.random(2, vocabulary=6, length=1, seed=5), 1.0, 0.2
    reward = torch.randn(2, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    policy = Tabular.from_logits(reference.logits.detach(), vocabulary=6, length=1)
    optimizer = torch.optim.SGD([policy.logits], lr=1.0)
    for _ in range(60):
        old = Tabular.from_logits(policy.logits.detach(), vocabulary=6, length=1)
        for _ in range(10):
            optimizer.zero_grad()
            prdp(everything(policy, reference, old, reward), beta=beta, clip=clip)[0].mean().backward()
            optimizer.step()
    assert distance(policy, reference, reward / beta) < 1e-3
