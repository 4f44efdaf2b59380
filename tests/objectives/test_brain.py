import math

import pytest
import torch
from torch import Tensor

from stages.batches import Groups, Steps
from stages.optimize.objectives.brain import brain
from stages.optimize.objectives.dpo import dpo
from tests.objectives.build import check_slopes, gradients, group, members, minimize, pair, random_batch


def drawn(policy: Tensor, ref: Tensor, old: Tensor, reward: Tensor, arms: Tensor) -> Groups:
    """Samples `arms` `[g,k]` of tables of log-probs `[g,a]`, one step each."""
    logp, refs, olds = (each.gather(-1, arms)[..., None] for each in (policy, ref, old))
    steps = Steps(logp, torch.ones_like(refs, dtype=torch.bool), ref=refs, old=olds)
    return Groups(steps, reward=reward.gather(-1, arms), valid=torch.ones_like(arms, dtype=torch.bool))


def tables(*, prompts: int = 3, arms: int = 8) -> tuple[Tensor, ...]:
    """Reference, proposal and rewards of some prompts."""
    noise = torch.Generator().manual_seed(1)
    ref, old, reward = (torch.randn(prompts, arms, generator=noise, dtype=torch.float64) for _ in range(3))
    return ref.log_softmax(-1), old.log_softmax(-1), reward


def test_worked_numbers() -> None:
    """R - Q = (0, log 2), r / beta = (log 4, 0): alpha = (4, 2) / 6. L - Q = (log 3, 0): b = (3, 1) / 4.

    The loss is 2/3 * log(8/9) + 1/3 * log(4/3), its slopes b - alpha = (1/12, -1/12).
    """
    batch = group([math.log(3), -1.0], ref=[0.0, math.log(2) - 1.0], old=[0.0, -1.0], reward=[0.5 * math.log(4), 0.0])
    loss, gradient = gradients(brain, batch, beta=0.5)
    assert loss.item() == pytest.approx(2 / 3 * math.log(8 / 9) + math.log(4 / 3) / 3)
    assert gradient["steps"].flatten().tolist() == pytest.approx([1 / 12, -1 / 12])
    stats = brain(batch, beta=0.5)[1]
    assert stats["ess"].item() == pytest.approx(9 / 5)
    assert stats["rewards/margins"].item() == pytest.approx(0.25 * 0.5 * math.log(4))


def test_independent_reference() -> None:
    batch, beta = random_batch("Groups", seed=3), 0.7
    loss, slopes = [], []
    for g, (news, refs, olds) in enumerate(zip(*(members(batch, name) for name in ("logp", "ref", "old")))):
        reward = batch.reward[g, batch.valid[g]].tolist()
        a = [math.exp(math.fsum(r) + x / beta - math.fsum(o)) for r, o, x in zip(refs, olds, reward)]
        b = [math.exp(math.fsum(n) - math.fsum(o)) for n, o in zip(news, olds)]
        alpha, bet = ([x / sum(each) for x in each] for each in (a, b))
        loss.append(sum(x * math.log(x / y) for x, y in zip(alpha, bet)))
        slopes.append([[(y - x) / 5] * len(new) for x, y, new in zip(alpha, bet, news)])
    found, gradient = gradients(brain, batch, beta=beta)
    torch.testing.assert_close(found, torch.tensor(loss, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)


def test_a_constant_on_rewards_or_log_probs_changes_nothing() -> None:
    ref, old, reward = tables()
    arms = torch.arange(8).expand(3, 8)
    here, shifted, lower = (
        brain(drawn(policy, ref, old, r, arms))[0]
        for policy, r in ((old, reward), (old, reward + 5.0), (old - 3.0, reward))
    )
    torch.testing.assert_close(here, shifted)
    torch.testing.assert_close(here, lower)


def test_at_the_posterior_no_set_of_samples_has_a_gradient() -> None:
    """The proposal is neither the reference nor the policy, and samples repeat."""
    (ref, old, reward), beta = tables(), 0.5
    posterior = (ref + reward / beta).log_softmax(-1).requires_grad_()
    for seed in range(20):
        arms = torch.multinomial(old.exp(), 5, replacement=True, generator=torch.Generator().manual_seed(seed))
        loss = brain(drawn(posterior, ref, old, reward, arms), beta=beta)[0]
        (slope,) = torch.autograd.grad(loss.sum(), posterior)
        assert slope.abs().max() < 1e-12
        assert loss.abs().max() < 1e-12


def test_two_samples_of_the_reference_one_infinitely_better_are_dpo() -> None:
    """With beta = 1 in DPO, and with a soft alpha DPO on that soft label."""
    batch = group([0.3, -0.8], reward=[1e3, 0.0])
    here = gradients(brain, batch, beta=1.0)
    there = gradients(dpo, pair(0.3, -0.8), beta=1.0)
    torch.testing.assert_close(here[0], there[0])
    torch.testing.assert_close(here[1]["steps"].flatten(), torch.cat([there[1]["chosen"], there[1]["rejected"]])[:, 0])
    soft = gradients(brain, group([0.3, -0.8], reward=[1.0, 0.0]), beta=1.0)[1]
    label = gradients(dpo, pair(0.3, -0.8, prob=1 / (1 + math.exp(-1))), beta=1.0)[1]
    torch.testing.assert_close(soft["steps"].flatten()[0], label["chosen"].flatten()[0])


@pytest.mark.parametrize(("beta", "effective"), [(1e-4, 1.0), (1e9, 4.0)])
def test_beta_from_the_best_sample_to_the_reference_alone(beta: float, effective: float) -> None:
    """As beta falls one sample takes all weight; as it grows, samples of the reference share it equally."""
    stats = brain(group([0.0, 0.0, 0.0, 0.0], reward=[0.1, 0.4, 0.3, 0.2]), beta=beta)[1]
    assert stats["ess"].item() == pytest.approx(effective)


def test_samples_told_twice_teach_the_same() -> None:
    once, twice = group([-0.5, -1.0], reward=[0.2, 0.7]), group([-0.5, -1.0] * 2, reward=[0.2, 0.7] * 2)
    (loss, gradient), (again, halves) = gradients(brain, once, beta=1.0), gradients(brain, twice, beta=1.0)
    torch.testing.assert_close(loss, again)
    torch.testing.assert_close(gradient["steps"], halves["steps"].view(1, 2, 2, 1).sum(1))


def test_its_optimum_is_the_posterior_whatever_the_proposal() -> None:
    """Every answer once in its group."""
    (ref, old, reward), beta = tables(), 0.8
    arms = torch.arange(8).expand(3, 8)
    logits = torch.zeros(3, 8, dtype=torch.float64, requires_grad=True)
    minimize(logits, lambda: brain(drawn(logits.log_softmax(-1), ref, old, reward, arms), beta=beta)[0].mean())
    posterior = (ref + reward / beta).softmax(-1)
    torch.testing.assert_close(logits.detach().softmax(-1), posterior, rtol=0, atol=1e-5)
