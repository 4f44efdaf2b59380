import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.batches import Groups, Steps
from stages.optimize.advantages.group import group as standardised
from stages.optimize.advantages.leave_one_out import leave_one_out
from stages.optimize.objectives.ddpo import ddpo
from stages.optimize.objectives.grpo import grpo
from stages.optimize.objectives.rloo import rloo
from stages.policies.tabular import Tabular
from tests.objectives.build import check_slopes, gradients, group, members, random_batch

KINDS = ("grpo", "dr_grpo", "bnpo", "dapo")
every_kind = pytest.mark.parametrize("kind", KINDS)


def near_batch(seed: int = 1) -> Groups:
    """Ratios on both sides of the clip range, and inside it."""
    batch = random_batch("Groups", seed=seed)
    old = batch.steps.logp.detach() + 0.5 * torch.sin(torch.arange(60.0, dtype=torch.float64)).view(5, 3, 4)
    return replace(batch, steps=replace(batch.steps, old=old))


def on_policy(batch: Groups) -> Groups:
    return replace(batch, steps=replace(batch.steps, old=batch.steps.logp.detach().clone()))


def answered(answers: list[list[float]], advantage: list[float]) -> Groups:
    """One group whose members have these log-probs, ragged; behaviour and reference are the policy."""
    width = max(map(len, answers))
    mask = torch.tensor([[[t < len(row) for t in range(width)] for row in answers]])
    logp = torch.tensor([[row + [0.0] * (width - len(row)) for row in answers]], dtype=torch.float64)
    steps = Steps(logp.clone().requires_grad_(), mask, ref=logp, old=logp)
    there = torch.ones(1, len(answers), dtype=torch.bool)
    return Groups(steps, reward=there.double(), valid=there, advantage=torch.tensor([advantage], dtype=torch.float64))


# Worked numbers


def test_worked_numbers() -> None:
    """Ratio 1.5 at A = 1 counts as 1 + 0.28, at A = -1 in full; 0.5 at A = 1 in full, at A = -1 as 1 - 0.2.

    The reference is twice as likely as the policy: kl = 2 - log 2 - 1 = 0.306853, and beta = 0.5 adds half of it. Its
    gradient is 1 - 2 = -1 each, halved, beside 0, 1.5, -0.5 and 0 of the ratios.
    """
    logp = [math.log(ratio) for ratio in (1.5, 1.5, 0.5, 0.5)]
    batch = group(logp, ref=[value + math.log(2) for value in logp], advantage=[1.0, -1.0, 1.0, -1.0])
    loss, gradient = gradients(grpo, batch, clip_low=0.2, clip_high=0.28, beta=0.5)
    far = 0.5 * (1 - math.log(2))
    assert loss[0].tolist() == pytest.approx([-1.28 + far, 1.5 + far, -0.5 + far, 0.8 + far])
    assert (4 * gradient["steps"]).flatten().tolist() == pytest.approx([-0.5, 1.0, -1.0, -0.5])
    stats = grpo(batch, clip_low=0.2, clip_high=0.28)[1]
    assert stats["kl"].item() == pytest.approx(1 - math.log(2))
    assert stats["clip_ratio"].item() == 1
    assert stats["approx_kl"].item() == pytest.approx((math.log(1.5) ** 2 + math.log(2) ** 2) / 4)


@pytest.mark.parametrize(("kind", "losses"), [("grpo", [-1, 1]), ("dr_grpo", [-0.1, 0.3]), ("bnpo", [-0.5, 1.5])])
def test_aggregations(kind: str, losses: list[float]) -> None:
    """A = 1 over one step, A = -1 over three: own lengths 1 and 3, a constant of 10, the mean length of 2.

    The gradient of the mean loss on a step is A over that number and over two members: the paper's lets a step of the
    long answer count a third, under the other two all steps count alike.
    """
    batch = answered([[-1.0], [-1.0, -2.0, -3.0]], [1.0, -1.0])
    loss, gradient = gradients(grpo, batch, loss_type=kind, max_completion_length=10)
    assert loss[0].tolist() == pytest.approx(losses)
    own = {"grpo": (1, 3), "dr_grpo": (10, 10), "bnpo": (2, 2)}[kind]
    steps = gradient["steps"][0]
    assert steps[0].tolist() == pytest.approx([-1 / own[0] / 2, 0, 0])
    assert steps[1].tolist() == pytest.approx([1 / own[1] / 2] * 3)


def test_a_mean_over_the_tokens_of_the_step_however_it_is_cut() -> None:
    """Two prompts, answers of 1 and 3 steps, then of 1 and 1: `dapo` divides the sums by 6 tokens, whole or in passes.

    `bnpo` divides those of each pass by its own 4 and 2 tokens, and halves: the short answers count for more.
    """
    first, second = answered([[-1.0], [-1.0] * 3], [1.0, -1.0]), answered([[-1.0], [-1.0]], [2.0, 1.0])
    mean = torch.tensor(6 / 4, dtype=torch.float64)
    losses = {
        kind: [grpo(replace(part, length=mean), loss_type=kind)[0].mean().item() for part in (first, second)]
        for kind in ("dapo", "bnpo")
    }
    assert sum(losses["dapo"]) / 2 == pytest.approx((-1 + 3 - 2 - 1) / 6)
    assert sum(losses["bnpo"]) / 2 == pytest.approx((2 / 4 - 3 / 2) / 2)
    assert grpo(first, loss_type="dapo")[0].mean().item() == pytest.approx(2 / 4)  # the pass is the step


# Independent reference


def plain(batch: Groups, kind: str, *, low: float, high: float, beta: float, longest: int) -> tuple[Tensor, list]:
    """Loss `[g,k]`, and the gradient of its mean, by loops over plain floats."""
    held = [members(batch, name) for name in ("logp", "old", "ref")]
    counts = [len(row) for each in held[0] for row in each]
    loss, slopes = torch.zeros(batch.valid.shape, dtype=torch.float64), []
    for g, rows in enumerate(zip(*held)):
        slopes.append([])
        for k, (new, old, ref) in enumerate(zip(*rows)):
            mean = sum(counts) / len(counts)
            n = {"grpo": len(new), "dr_grpo": longest, "bnpo": mean, "dapo": mean}[kind]
            losses, slope = [], []
            for t, (logp, before, other) in enumerate(zip(new, old, ref)):
                a = (batch.advantage[g, k] if batch.advantage.dim() == 2 else batch.advantage[g, k, t]).item()
                rho = math.exp(logp - before)
                free, cut = a * rho, a * min(max(rho, 1 - low), 1 + high)
                far = math.exp(other - logp)
                losses.append(-min(free, cut) + beta * (far - (other - logp) - 1))
                slope.append(((-free if free <= cut else 0.0) + beta * (1 - far)) / n / batch.valid.numel())
            loss[g, k] = math.fsum(losses) / n
            slopes[-1].append(slope)
    return loss, slopes


@every_kind
@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("by_step", [False, True])
def test_independent_reference(kind: str, beta: float, by_step: bool) -> None:
    """The last member of the first group is absent: it has no loss and its steps do not count."""
    batch = near_batch()
    if by_step:
        advantage = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        batch = replace(batch, advantage=advantage)
    loss, slopes = plain(batch, kind, low=0.2, high=0.3, beta=beta, longest=7)
    told = {"clip_low": 0.2, "clip_high": 0.3, "beta": beta, "loss_type": kind, "max_completion_length": 7}
    found, gradient = gradients(grpo, batch, **told)
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)
    rho = (batch.steps.logp - batch.steps.old).exp()[batch.steps.mask]
    assert all(zone.any() for zone in (rho < 0.8, rho > 1.3, (rho > 0.8) & (rho < 1.3)))


@every_kind
def test_the_mean_loss_is_that_of_the_flat_sums(kind: str) -> None:
    """As trainers write it: rows of samples, one masked sum, one denominator."""
    batch = near_batch()
    batch = replace(batch, valid=torch.ones_like(batch.valid))
    logp, mask = batch.steps.logp.detach().flatten(0, 1), batch.steps.mask.flatten(0, 1).double()
    old, ref = batch.steps.old.flatten(0, 1), batch.steps.ref.flatten(0, 1)
    a, ratio = batch.advantage.flatten()[:, None], (logp - old).exp()
    by_token = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) + 0.1 * ((ref - logp).exp() - (ref - logp) - 1)
    by_token = by_token * mask
    wanted = {
        "grpo": (by_token.sum(1) / mask.sum(1)).mean(),
        "dr_grpo": by_token.sum() / (15 * 9),
        "bnpo": by_token.sum() / mask.sum(),
        "dapo": by_token.sum() / mask.sum(),
    }[kind]
    found = grpo(batch, beta=0.1, loss_type=kind, max_completion_length=9)[0].mean()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


# Limits


def test_on_policy_without_a_pull_the_gradient_is_that_of_reinforce() -> None:
    """-A / |y| on every step of a sample, over the number of samples."""
    batch = on_policy(random_batch("Groups"))
    gradient = gradients(grpo, batch, beta=0.0)[1]["steps"]
    mask = batch.steps.mask & batch.valid[..., None]
    wanted = -batch.advantage[..., None] / batch.steps.mask.sum(-1, keepdim=True) * mask / 15
    torch.testing.assert_close(gradient, wanted)
    stats = grpo(batch)[1]
    assert stats["clip_ratio"].tolist() == stats["approx_kl"].tolist() == [0.0] * 5


def test_without_a_pull_and_with_one_clip_range_it_is_ddpo_and_no_reference_is_read() -> None:
    batch = near_batch()
    batch = replace(batch, steps=replace(batch.steps, ref=None))
    left = gradients(grpo, batch, beta=0.0, clip_low=0.3, clip_high=0.3)
    right = gradients(ddpo, batch, clip=0.3)
    there = batch.valid[..., None]
    torch.testing.assert_close(left[0], torch.where(batch.valid, right[0], 0.0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left[1]["steps"], torch.where(there, right[1]["steps"], 0.0), rtol=1e-12, atol=1e-12)


@every_kind
def test_equal_rewards_leave_the_policy_as_it_is(kind: str) -> None:
    batch = near_batch()
    batch = replace(batch, reward=torch.full_like(batch.reward, 0.3))
    loss, gradient = gradients(grpo, replace(batch, advantage=standardised(batch)), beta=0.0, loss_type=kind)
    assert (loss == 0).all()
    assert (gradient["steps"] == 0).all()


@pytest.mark.parametrize(("scale", "moved"), [(3.0, 0.0), (1.0, 5.0), (0.1, -2.0)])
def test_rewards_on_another_scale_are_the_same_rewards(scale: float, moved: float) -> None:
    """Under the group's own mean and deviation, but for the eps that keeps equal rewards at 0."""
    batch = near_batch()
    other = replace(batch, reward=scale * batch.reward + moved)
    left, right = (gradients(grpo, replace(one, advantage=standardised(one, eps=1e-12)))[1] for one in (batch, other))
    torch.testing.assert_close(left["steps"], right["steps"])


@every_kind
def test_samples_of_one_length_are_aggregated_alike(kind: str) -> None:
    batch = near_batch()
    batch = replace(batch, steps=replace(batch.steps, mask=torch.ones_like(batch.steps.mask)))
    told = {"loss_type": kind, "max_completion_length": 4}
    torch.testing.assert_close(gradients(grpo, batch), gradients(grpo, batch, **told), rtol=1e-12, atol=1e-12)


def test_the_mean_difference_approaches_leave_one_out_and_its_gradient_that_of_rloo() -> None:
    """Advantages without the deviation are RLOO's times (K - 1) / K; on policy a sum over steps is n times a mean.

    With n = 1 for all samples, both objectives add the same log-probs up.
    """
    for k in (2, 4, 64):
        batch = random_batch("Groups", k=k)
        batch = on_policy(replace(batch, valid=torch.ones_like(batch.valid)))
        plain_difference = replace(batch, advantage=standardised(batch, std="none"))
        left = gradients(grpo, plain_difference, beta=0.0, loss_type="dr_grpo", max_completion_length=1)[1]["steps"]
        right = gradients(rloo, replace(batch, advantage=leave_one_out(batch)), beta=0.0)[1]["steps"]
        torch.testing.assert_close(left, (k - 1) / k * right)


def test_the_pull_is_positive_and_0_at_the_reference_alone() -> None:
    gaps = [-5.0, -1.0, -1e-3, 0.0, 1e-3, 1.0, 5.0]
    batch = group(gaps, advantage=[0.0] * 7)
    loss, gradient = gradients(grpo, batch, beta=1.0)
    assert loss[0].tolist() == pytest.approx([math.exp(-gap) + gap - 1 for gap in gaps], abs=1e-15)
    assert [value > 0 for value in loss[0].tolist()] == [gap != 0 for gap in gaps]
    assert gradient["steps"].flatten().sign().tolist() == [math.copysign(1, gap) if gap else 0 for gap in gaps]


def test_the_pull_is_the_gradient_of_the_divergence_of_the_reference_from_the_policy() -> None:
    """Summed over all samples with their probabilities under the policy, held fixed: KL(ref || pi), not KL(pi || ref).

    The value of the sum is KL(pi || ref) all the same: E[ref / pi - 1] is 0.
    """
    policy, reference = (Tabular.random(1, vocabulary=5, length=1, seed=seed) for seed in (1, 2))
    answers = policy.enumerate()
    steps = policy.steps(torch.zeros(5, dtype=torch.long), answers, reference)
    groups = Groups(
        replace(
            steps, logp=steps.logp[None], mask=steps.mask[None], ref=steps.ref[None], old=steps.logp.detach()[None]
        ),
        reward=torch.zeros(1, 5),
        valid=torch.ones(1, 5, dtype=torch.bool),
        advantage=torch.zeros(1, 5, dtype=torch.float64),
    )
    weights = policy.sequence_log_probs().detach().exp()
    pull = (weights * grpo(groups, beta=1.0)[0]).sum()
    assert pull.item() == pytest.approx(policy.kl(reference).item())
    (found,) = torch.autograd.grad(pull, policy.logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(reference.kl(policy).sum(), policy.logits)
    (other,) = torch.autograd.grad(policy.kl(reference).sum(), policy.logits)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, other, atol=1e-2)


def test_pairs_of_a_binary_reward_follow_the_policy_gradient() -> None:
    """Two samples of rewards 0 and 1 have advantages -1 and 1 (the deviation is 1/2).

    Over all pairs with their probabilities, the gradient of the mean loss is that of -(expected reward): a pair that
    differs, at P(i) P(j), pushes 1/2 (grad logp_i - grad logp_j), twice what the reward's gradient asks per unit of
    p (1 - p), and the mean over the two orders and members halves it.
    """
    policy = Tabular.random(1, vocabulary=4, length=1, seed=3)
    reward = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    first, second = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    chosen = torch.stack([first, second], 1)  # [16,2]
    logp = policy.sequence_log_probs()[0][chosen][..., None]
    there = torch.ones(16, 2, dtype=torch.bool)
    batch = Groups(Steps(logp, there[..., None], old=logp.detach()), reward=reward[chosen], valid=there)
    batch = replace(batch, advantage=standardised(batch, eps=1e-12))
    weights = logp.detach().sum((1, 2)).exp()
    (found,) = torch.autograd.grad((weights * grpo(batch, beta=0.0)[0].mean(1)).sum(), policy.logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(-policy.expect(reward[None]).sum(), policy.logits)
    torch.testing.assert_close(found, wanted)


# Robustness


@pytest.mark.parametrize("a", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_finite_where_a_ratio_would_overflow(gap: float, a: float) -> None:
    loss, gradient = gradients(grpo, group([gap], advantage=[a]))
    assert loss.isfinite().all()
    assert gradient["steps"].isfinite().all()


def test_statistics_count_the_steps_of_present_members_only() -> None:
    batch = replace(group([1.0, 0.0, -9.0], advantage=[1.0, -1.0, 0.0]), valid=torch.tensor([[True, True, False]]))
    stats = grpo(batch)[1]
    assert stats["kl"].item() == pytest.approx(math.exp(-1) / 2)
    assert stats["clip_ratio"].item() == pytest.approx(0.5)
    assert stats["approx_kl"].item() == pytest.approx(0.25)


def test_small_divergences_survive_float32() -> None:
    batch = group([-1e-3], advantage=[0.0])
    steps = Steps(batch.steps.logp.float(), batch.steps.mask, ref=batch.steps.ref.float(), old=batch.steps.old.float())
    kl = grpo(replace(batch, steps=steps), beta=1.0)[1]["kl"].item()
    assert kl == pytest.approx(5e-7, rel=1e-2)
