import math
from dataclasses import replace

import pytest
import torch

from stages.batches import Groups, Steps
from stages.optimize.objectives.awm import awm
from stages.optimize.objectives.flow_grpo import flow_grpo
from tests.objectives.build import check_slopes, gradients, group, members, random_batch


def levels(logp: list[float], old: list[float], advantage: float) -> Groups:
    """One sample at several noise levels, as near the reference as can be."""
    taken = torch.tensor([[logp]], dtype=torch.float64).requires_grad_()
    before = torch.tensor([[old]], dtype=torch.float64)
    there = torch.ones_like(taken, dtype=torch.bool)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    steps = Steps(taken, there, old=before, kl=torch.zeros_like(before))
    return Groups(steps, reward=zero, valid=there[..., 0], advantage=zero + advantage)


def test_worked_numbers() -> None:
    """Ratios 3 and 1/2 at A = 1, clip 1: (min(3, 2) + 1/2) / 2 = 1.25 by level; sqrt(3/2) = 1.2247 for the sample.

    At A = -1 by level: (3 + 1/2) / 2 = 1.75.
    """
    logp = [math.log(3.0), math.log(0.5)]
    assert awm(levels(logp, [0.0, 0.0], 1.0))[0].item() == pytest.approx(-1.25)
    assert awm(levels(logp, [0.0, 0.0], -1.0))[0].item() == pytest.approx(1.75)
    assert awm(levels(logp, [0.0, 0.0], 1.0), ratio="sum_first")[0].item() == pytest.approx(-math.sqrt(1.5))


@pytest.mark.parametrize("ratio", ["exp_first", "sum_first"])
def test_independent_reference(ratio: str) -> None:
    batch, clip, beta = random_batch("Groups", seed=4), 0.5, 0.3
    loss, slopes = torch.zeros(5, 3, dtype=torch.float64), []
    for g, (news, olds, divergences) in enumerate(zip(*(members(batch, name) for name in ("logp", "old", "kl")))):
        slopes.append([])
        for k, (new, old, kl) in enumerate(zip(news, olds, divergences)):
            a, j = batch.advantage[g, k].item(), len(new)
            gaps = [logp - before for logp, before in zip(new, old)]
            if ratio == "sum_first":
                gaps = [math.fsum(gaps) / j] * j
            free = [-a * math.exp(gap) for gap in gaps]
            cut = [-a * min(max(math.exp(gap), 1 - clip), 1 + clip) for gap in gaps]
            loss[g, k] = math.fsum(map(max, free, cut)) / j + beta * math.fsum(kl) / j
            slopes[-1].append([(f if f >= c else 0.0) / j / 15 for f, c in zip(free, cut)])
    found, gradient = gradients(awm, batch, clip=clip, beta=beta, ratio=ratio)
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)


def test_level_by_level_it_is_flow_grpo_on_another_log_prob() -> None:
    """Both are clipped ratios with a divergence: what differs is what the image policy calls logp."""
    batch = random_batch("Groups")
    assert torch.equal(awm(batch, clip=0.2, beta=0.1)[0], flow_grpo(batch, clip=0.2, beta=0.1)[0])


def test_on_policy_both_ratios_have_the_gradient_of_the_advantage_times_the_log_prob() -> None:
    batch = random_batch("Groups")
    batch = replace(batch, steps=replace(batch.steps, old=batch.steps.logp.detach().clone()))
    first, second = (gradients(awm, batch, beta=0.0, ratio=ratio) for ratio in ("exp_first", "sum_first"))
    share = batch.steps.mask / batch.steps.mask.sum(-1, keepdim=True)
    expected = torch.where(batch.valid, -batch.advantage, 0.0)[..., None] * share / 15
    for loss, gradient in (first, second):
        torch.testing.assert_close(loss, torch.where(batch.valid, -batch.advantage, 0.0))
        torch.testing.assert_close(gradient["steps"], expected)


def errors(weight: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Mean squared error of a linear flow model v = weight * x_s at levels s: `[k,j]`."""
    x = (1 - s)[..., None] * x0[:, None] + s[..., None] * noise
    return ((weight * x - (noise - x0[:, None])) ** 2).mean(-1)


def test_at_advantage_one_it_is_the_pretraining_gradient_on_its_own_samples() -> None:
    """At A = 1 and no divergence, logp = -m has the gradient of mean(m): flow matching on the samples."""
    seed = torch.Generator().manual_seed(5)
    x0, noise = torch.randn(3, 6, generator=seed).double(), torch.randn(3, 4, 6, generator=seed).double()
    s = torch.rand(3, 4, generator=seed).double()
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    m = errors(weight, x0, noise, s)
    batch = group([0.0] * 3, kl=[0.0] * 3, advantage=[1.0] * 3)
    wide = batch.steps.mask.expand(1, 3, 4)
    steps = Steps(-m[None], wide, old=-m[None].detach(), kl=torch.zeros_like(m[None]))
    (found,) = torch.autograd.grad(awm(replace(batch, steps=steps))[0].mean(), weight, retain_graph=True)
    (matching,) = torch.autograd.grad(m.mean(), weight)
    torch.testing.assert_close(found, matching)


def test_no_advantage_leaves_the_pull_alone() -> None:
    batch = replace(random_batch("Groups"), advantage=torch.zeros(5, 3, dtype=torch.float64))
    loss, gradient = gradients(awm, batch, beta=0.5)
    assert (gradient["steps"] == 0).all()
    at_reference = replace(batch.steps, kl=torch.zeros_like(batch.steps.kl))
    assert (loss[batch.valid] > 0).all()
    assert (awm(replace(batch, steps=at_reference), beta=0.5)[0] == 0).all()


def test_a_larger_advantage_and_beta_are_a_larger_loss() -> None:
    """Advantages and beta 5 times the paper's: 5 times its loss and gradient."""
    batch = random_batch("Groups")
    theirs = gradients(awm, replace(batch, advantage=batch.advantage / 5), beta=0.001)
    ours = gradients(awm, batch, beta=0.005)
    torch.testing.assert_close(ours[0], 5 * theirs[0])
    torch.testing.assert_close(ours[1]["steps"], 5 * theirs[1]["steps"])
