import math
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from stages.optimize.objectives.ddpo import ddpo
from stages.optimize.objectives.flow_grpo import flow_grpo
from tests.objectives.build import check_slopes, gradients, group, members, random_batch


def test_worked_numbers() -> None:
    """Ratio 1.5 at A = 1, clip 0.2 counts as 1.2; kl 0.3 at beta 2 adds 0.6: -0.6."""
    batch = group([math.log(1.5)], kl=[0.3], advantage=[1.0])
    loss, stats = flow_grpo(batch, clip=0.2, beta=2.0)
    assert loss.item() == pytest.approx(-0.6)
    assert stats["kl"].item() == pytest.approx(0.3)
    assert stats["clip_ratio"].item() == 1


def test_independent_reference() -> None:
    """Value, and the gradient with respect to both the log-probs and the divergences."""
    batch, clip, beta = random_batch("Groups", seed=3), 0.5, 0.7
    batch = replace(batch, steps=replace(batch.steps, kl=batch.steps.kl.requires_grad_()))
    loss, slopes, pulls, kls = torch.zeros(5, 3, dtype=torch.float64), [], [], []
    fields = zip(*(members(batch, name) for name in ("logp", "old", "kl")))
    for g, (news, olds, divergences) in enumerate(fields):
        slopes.append([])
        for k, (new, old, kl) in enumerate(zip(news, olds, divergences)):
            a, slope, losses = batch.advantage[g, k].item(), [], []
            for logp, before, far in zip(new, old, kl):
                rho = math.exp(logp - before)
                free, cut = -a * rho, -a * min(max(rho, 1 - clip), 1 + clip)
                losses.append(max(free, cut) + beta * far)
                slope.append((free if free >= cut else 0.0) / len(new) / 15)
            loss[g, k] = math.fsum(losses) / len(new)
            slopes[-1].append(slope)
        pulls.append([[beta / len(new) / 15] * len(new) for new in news])
        flat = [each for member in divergences for each in member]
        kls.append(math.fsum(flat) / len(flat))
    found, stats = flow_grpo(batch, clip=clip, beta=beta)
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=1e-12)
    by_logp, by_kl = torch.autograd.grad(found.mean(), [batch.steps.logp, batch.steps.kl])
    check_slopes(batch, by_logp, slopes)
    check_slopes(batch, by_kl, pulls)
    torch.testing.assert_close(stats["kl"], torch.tensor(kls, dtype=torch.float64))


def test_without_the_pull_it_is_ddpo() -> None:
    batch = random_batch("Groups")
    for clip in (1e-4, 0.5):
        left, right = gradients(flow_grpo, batch, beta=0.0, clip=clip), gradients(ddpo, batch, clip=clip)
        assert torch.equal(left[0], right[0])
        assert torch.equal(left[1]["steps"], right[1]["steps"])


def test_at_policy_behaviour_and_reference_alike_the_loss_is_minus_the_advantage() -> None:
    assert flow_grpo(group([0.0, 0.0], kl=[0.0, 0.0], advantage=[0.8, -0.8]))[0][0].tolist() == [-0.8, 0.8]


def gaussian(theta: torch.Tensor, taken: torch.Tensor, *, std: float, beta: float, advantage: list[float]):
    """One member per taken action of a Gaussian step with mean theta; the reference and the behaviour have mean 0."""
    policy, reference = Normal(theta, std), Normal(torch.zeros((), dtype=torch.float64), std)
    batch = group([0.0] * len(taken), advantage=advantage)
    logp, kl = policy.log_prob(taken).view(1, -1, 1), kl_divergence(policy, reference).expand(1, len(taken), 1)
    old = reference.log_prob(taken).view(1, -1, 1)
    return flow_grpo(replace(batch, steps=replace(batch.steps, logp=logp, old=old, kl=kl)), clip=1e9, beta=beta)[0]


def test_the_policy_settles_where_gain_and_divergence_balance() -> None:
    """Every gradient step of a Gaussian policy: at theta = 0 the gain's slope is -mean(A * x) / std^2.

    Its divergence theta^2 / (2 std^2) grows from a slope of 0, so that the first move is the gain's alone; where
    theta = mean(A * x) / beta both slopes of the linearised loss cancel.
    """
    taken, advantage, std, beta = torch.tensor([1.0, -1.0], dtype=torch.float64), [1.0, -1.0], 5.0, 40.0
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gaussian(theta, taken, std=std, beta=beta, advantage=advantage).mean(), theta)
    assert slope.item() == pytest.approx(-1 / std**2)
    balance = torch.tensor(1 / beta, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(gaussian(balance, taken, std=std, beta=beta, advantage=advantage).mean(), balance)
    assert abs(slope.item()) < 2e-3 / std**2


def test_equal_rewards_still_pull_to_the_reference() -> None:
    batch = group([0.0, 0.0], kl=[0.5, 0.5], advantage=[0.0, 0.0])
    assert flow_grpo(batch, beta=0.04)[0][0].tolist() == pytest.approx([0.02, 0.02])
