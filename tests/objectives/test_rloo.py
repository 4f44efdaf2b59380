import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.batches import Groups, Steps
from stages.optimize.advantages.leave_one_out import leave_one_out
from stages.optimize.objectives.rloo import rloo
from stages.policies.tabular import Tabular
from tests.objectives.build import check_slopes, gradients, group, members, random_batch


def near_batch(seed: int = 1) -> Groups:
    """Answers' ratios on both sides of the clip range, and inside it; two samples or three to a prompt."""
    batch = random_batch("Groups", seed=seed)
    old = batch.steps.logp.detach() + 0.2 * torch.sin(torch.arange(60.0, dtype=torch.float64)).view(5, 3, 4)
    return replace(batch, steps=replace(batch.steps, old=old), advantage=leave_one_out(batch))


def on_policy(batch: Groups) -> Groups:
    return replace(batch, steps=replace(batch.steps, old=batch.steps.logp.detach().clone()))


# Worked numbers


def test_worked_numbers() -> None:
    """Two answers, ratios 1.5 and 0.9, rewards 3 and 1, log-ratios to the reference 0.5 and -1.5, beta 0.25.

    Regularized rewards 3 - 0.125 and 1 + 0.375: A = 1.5 and -1.5. The first ratio counts as 1.2: -1.8, no gradient;
    the second, inside the range, in full: 1.35, and 1.35 its gradient.
    """
    batch = group([math.log(1.5), math.log(0.9)], ref=[-0.5, 1.5], reward=[3.0, 1.0])
    batch = replace(batch, advantage=leave_one_out(batch))
    loss, gradient = gradients(rloo, batch, beta=0.25)
    assert loss[0].tolist() == pytest.approx([-1.8, 1.35])
    assert (2 * gradient["steps"]).flatten().tolist() == pytest.approx([0, 1.35])
    stats = rloo(batch, beta=0.25)[1]
    assert stats["kl"].item() == pytest.approx(-0.5)
    assert stats["clip_ratio"].item() == 0.5
    assert stats["approx_kl"].item() == pytest.approx((math.log(1.5) ** 2 + math.log(0.9) ** 2) / 4)


def test_an_answer_is_one_action() -> None:
    """Steps of ratio 1.1 each: one is inside the clip range, two together, 1.21, are outside: their sum counts."""
    mask = torch.tensor([[[True, False], [True, True]]])
    logp = torch.full((1, 2, 2), math.log(1.1), dtype=torch.float64, requires_grad=True)
    zero, there = torch.zeros(1, 2, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    batch = Groups(Steps(logp, mask, ref=zero, old=zero), reward=there.double(), valid=there, advantage=there.double())
    loss, gradient = gradients(rloo, batch)
    assert loss[0].tolist() == pytest.approx([-1.1, -1.2])
    assert (2 * gradient["steps"])[0].flatten().tolist() == pytest.approx([-1.1, 0, 0, 0])


# Independent reference


def plain(batch: Groups, *, clip: float, beta: float) -> tuple[Tensor, list, list[float]]:
    """Loss `[g,k]`, the gradient of its mean and the statistic `kl`, by loops over plain floats."""
    held = [members(batch, name) for name in ("logp", "old", "ref")]
    loss, slopes, kls = torch.zeros(batch.valid.shape, dtype=torch.float64), [], []
    for g, rows in enumerate(zip(*held)):
        regularized, away = [], []
        for k, (_, old, ref) in enumerate(zip(*rows)):
            steps = [before - other for before, other in zip(old, ref)]
            away += steps
            regularized.append(batch.reward[g, k].item() - beta * math.fsum(steps))
        kls.append(math.fsum(away) / len(away))
        slopes.append([])
        for k, (new, old, _) in enumerate(zip(*rows)):
            others = regularized[:k] + regularized[k + 1 :]
            a = regularized[k] - math.fsum(others) / len(others)
            rho = math.exp(math.fsum(new) - math.fsum(old))
            free, cut = a * rho, a * min(max(rho, 1 - clip), 1 + clip)
            loss[g, k] = -min(free, cut)
            slopes[-1].append([(-free if free <= cut else 0.0) / batch.valid.numel()] * len(new))
    return loss, slopes, kls


@pytest.mark.parametrize("beta", [0.0, 0.03, 0.8])
def test_independent_reference(beta: float) -> None:
    """The advantage comes out of the rewards here, so that both halves of it are checked together."""
    batch = near_batch()
    loss, slopes, kls = plain(batch, clip=0.2, beta=beta)
    found, gradient = gradients(rloo, batch, clip=0.2, beta=beta)
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)
    stats = rloo(batch, beta=beta)[1]
    assert ("kl" in stats) == (beta > 0)
    if beta:
        torch.testing.assert_close(stats["kl"], torch.tensor(kls, dtype=torch.float64))
    rho = torch.where(batch.steps.mask, batch.steps.logp - batch.steps.old, 0.0).sum(-1).exp()
    assert all(zone.any() for zone in (rho < 0.8, rho > 1.2, (rho > 0.8) & (rho < 1.2)))


# Limits


def test_on_policy_the_gradient_is_that_of_reinforce_with_the_advantage_on_every_step() -> None:
    """-A of the whole answer on each of its steps: a sum over time, no mean."""
    batch = on_policy(near_batch())
    loss, gradient = gradients(rloo, batch, beta=0.0)
    torch.testing.assert_close(loss, -batch.advantage)
    mask = batch.steps.mask & batch.valid[..., None]
    torch.testing.assert_close(gradient["steps"], -batch.advantage[..., None] * mask / 15)


def test_without_a_pull_no_reference_is_read() -> None:
    batch = near_batch()
    bare = replace(batch, steps=replace(batch.steps, ref=None))
    torch.testing.assert_close(rloo(batch, beta=0.0)[0], rloo(bare, beta=0.0)[0], rtol=0, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_a_constant_on_the_rewards_of_a_prompt_changes_nothing(beta: float) -> None:
    batch = near_batch()
    moved = replace(batch, reward=batch.reward + torch.arange(5.0, dtype=torch.float64)[:, None])
    moved = replace(moved, advantage=leave_one_out(moved))
    torch.testing.assert_close(gradients(rloo, batch, beta=beta), gradients(rloo, moved, beta=beta))


def test_rewards_and_their_price_scale_together() -> None:
    batch = near_batch()
    scaled = replace(batch, advantage=10 * batch.advantage)
    torch.testing.assert_close(10 * rloo(batch, beta=0.1)[0], rloo(scaled, beta=1.0)[0])


def test_a_constant_reward_at_the_reference_has_exactly_no_gradient() -> None:
    batch = near_batch()
    batch = replace(batch, steps=replace(batch.steps, ref=batch.steps.old), reward=torch.full_like(batch.reward, 0.1))
    _, gradient = gradients(rloo, replace(batch, advantage=leave_one_out(batch)), beta=0.5)
    assert (gradient["steps"] == 0).all()


def test_advantages_of_a_group_sum_to_zero_with_the_price_in_them() -> None:
    batch = on_policy(near_batch())
    torch.testing.assert_close(rloo(batch, beta=0.8)[0].sum(-1), torch.zeros(5, dtype=torch.float64))


def test_of_two_samples_the_gradient_is_that_of_their_pair() -> None:
    """A = d and -d with d the difference of the regularized rewards: mean of -d (grad L_1 - grad L_2) / 2."""
    batch = random_batch("Groups", k=2)
    batch = on_policy(replace(batch, valid=torch.ones_like(batch.valid)))
    gradient = gradients(rloo, replace(batch, advantage=leave_one_out(batch)), beta=0.4)[1]["steps"]
    steps = batch.steps
    h = torch.where(steps.mask, steps.old - steps.ref, 0.0).sum(-1)
    regularized = batch.reward - 0.4 * h
    d = (regularized[:, 0] - regularized[:, 1])[:, None, None]
    pair = torch.tensor([1.0, -1.0], dtype=torch.float64)[None, :, None]
    torch.testing.assert_close(gradient, -0.5 * d * pair * steps.mask / 5)


def test_on_policy_the_gradient_is_that_of_the_squared_differences() -> None:
    """CoPG: sum over pairs of (rt_i - rt_j)^2 / (2 beta K (K - 1)) with rt = r - beta * h, h differentiated."""
    batch, beta = on_policy(near_batch(seed=4)), 0.3
    batch = replace(batch, valid=torch.ones_like(batch.valid))
    batch = replace(batch, advantage=leave_one_out(batch))
    steps = batch.steps
    h = torch.where(steps.mask, steps.logp - steps.ref, 0.0).sum(-1)
    rt = batch.reward - beta * h
    squares = (rt[:, :, None] - rt[:, None, :]).square().sum((1, 2)) / 2  # each pair once
    (wanted,) = torch.autograd.grad((squares / (2 * beta * 3 * 2)).mean(), steps.logp)
    torch.testing.assert_close(gradients(rloo, batch, beta=beta)[1]["steps"], wanted)


# Exact expectations


def all_groups(policy: Tabular, reference: Tabular, values: Tensor, k: int) -> tuple[Groups, Tensor]:
    """Every group of k answers to the one prompt, and its probability."""
    n = len(policy.enumerate())
    chosen = torch.cartesian_prod(*[torch.arange(n)] * k)  # [n^k, k]
    flat = policy.steps(torch.zeros(chosen.numel(), dtype=torch.long), policy.enumerate()[chosen.flatten()], reference)
    shape = (*chosen.shape, policy.length)
    steps = Steps(
        flat.logp.view(shape), flat.mask.view(shape), flat.ref.view(shape), old=flat.logp.detach().view(shape)
    )
    batch = Groups(steps, reward=values[chosen], valid=torch.ones_like(chosen, dtype=torch.bool))
    return replace(batch, advantage=leave_one_out(batch)), steps.old.sum((1, 2)).exp()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_the_expected_gradient_is_that_of_the_regularized_reward(k: int, beta: float) -> None:
    """Over all groups with their probabilities: unbiased, -grad (E[r] - beta KL(pi || ref)) and no less."""
    policy, reference = (Tabular.random(1, vocabulary=3, length=2, seed=seed) for seed in (5, 6))
    values = torch.randn(9, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    batch, weights = all_groups(policy, reference, values, k)
    assert weights.sum().item() == pytest.approx(1)
    loss = (weights * rloo(batch, beta=beta)[0].mean(-1)).sum()
    (found,) = torch.autograd.grad(loss, policy.logits, retain_graph=True)
    aim = policy.expect(values[None]).sum() - beta * policy.kl(reference).sum()
    (wanted,) = torch.autograd.grad(-aim, policy.logits)
    torch.testing.assert_close(found, wanted)


def test_where_the_regularized_reward_is_best_the_gradient_of_every_group_is_zero() -> None:
    """At pi = ref * exp(r / beta) / Z the regularized reward is the same for all answers: nothing is left to learn."""
    reference, beta = Tabular.random(1, vocabulary=3, length=2, seed=6), 0.7
    values = torch.randn(9, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    best = Tabular.from_logits((reference.sequence_log_probs() + values / beta).detach(), vocabulary=3, length=2)
    batch, _ = all_groups(best, reference, values, 2)
    (slope,) = torch.autograd.grad(rloo(batch, beta=beta)[0].abs().sum(), best.logits)
    assert slope.abs().max().item() < 1e-12


# Robustness


@pytest.mark.parametrize("a", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_finite_where_a_ratio_would_overflow(gap: float, a: float) -> None:
    loss, gradient = gradients(rloo, group([gap, 0.0], advantage=[a, -a]))
    assert loss.isfinite().all()
    assert gradient["steps"].isfinite().all()


def test_absent_members_are_no_baseline() -> None:
    """The third answer is far from the reference, and absent: the pull compares the first two alone."""
    batch = group([0.0, 0.0, 0.0], ref=[-2.0, 0.0, 90.0], advantage=[0.0, 0.0, 9.0])
    batch = replace(batch, valid=torch.tensor([[True, True, False]]))
    loss, stats = rloo(batch, beta=0.5)
    assert loss[0].tolist() == pytest.approx([1.0, -1.0, 0.0])
    assert stats["kl"].item() == 1


def test_a_sample_alone_teaches_nothing() -> None:
    assert gradients(rloo, group([0.0], ref=[-3.0], advantage=[0.0]))[1]["steps"].item() == 0
