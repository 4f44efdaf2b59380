import math
from dataclasses import replace

import pytest
import torch

from stages.optimize.advantages.group import group as standardised
from stages.optimize.objectives.ddpo import ddpo
from tests.objectives.build import check_slopes, gradients, group, members, random_batch

NEAR = {"clip": 0.3}


def near_batch(seed: int = 1):
    """Ratios on both sides of a clip range of 0.3, and inside it."""
    batch = random_batch("Groups", seed=seed)
    old = batch.steps.logp.detach() + 0.4 * torch.sin(torch.arange(60.0, dtype=torch.float64)).view(5, 3, 4)
    return replace(batch, steps=replace(batch.steps, old=old))


def test_worked_numbers() -> None:
    """Ratios 1.5, 0.5 and 1 at A = 1, clip 0.2: 1.2 at most, 0.5 in full, 1; their gradients 0, -0.5 and -1.

    At A = -1 the other side is cut: 1.5 counts in full, 0.5 as 0.8, with gradients 1.5, 0 and 1.
    """
    logp = [math.log(1.5), math.log(0.5), 0.0]
    for a, losses, slopes in ((1.0, [-1.2, -0.5, -1.0], [0, -0.5, -1.0]), (-1.0, [1.5, 0.8, 1.0], [1.5, 0, 1.0])):
        loss, gradient = gradients(ddpo, group(logp, advantage=[a] * 3), clip=0.2)
        assert loss[0].tolist() == pytest.approx(losses)
        assert (3 * gradient["steps"]).flatten().tolist() == pytest.approx(slopes)


@pytest.mark.parametrize("by_step", [False, True])
def test_independent_reference(by_step: bool) -> None:
    batch, clip = near_batch(), 0.3
    if by_step:
        batch = replace(batch, advantage=torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2)).double())
    loss, slopes, kinds = torch.zeros(5, 3, dtype=torch.float64), [], set()
    for g, (news, olds) in enumerate(zip(members(batch, "logp"), members(batch, "old"))):
        slopes.append([])
        for k, (new, old) in enumerate(zip(news, olds)):
            slope, losses = [], []
            for t, (logp, before) in enumerate(zip(new, old)):
                a = batch.advantage[g, k, t].item() if by_step else batch.advantage[g, k].item()
                rho = math.exp(logp - before)
                free, cut = -a * rho, -a * min(max(rho, 1 - clip), 1 + clip)
                losses.append(max(free, cut))
                slope.append((free if free >= cut else 0.0) / len(new) / 15)  # d rho / d logp = rho
                kinds.add((a > 0, rho < 1 - clip, rho > 1 + clip))
            loss[g, k] = math.fsum(losses) / len(new)
            slopes[-1].append(slope)
    assert len(kinds) == 6, "either sign of A, below, inside and above the clip range"
    found, gradient = gradients(ddpo, batch, clip=clip)
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)


def test_independent_reference_of_the_score_function() -> None:
    batch = near_batch()
    loss, slopes = torch.zeros(5, 3, dtype=torch.float64), []
    for g, news in enumerate(members(batch, "logp")):
        for k, new in enumerate(news):
            loss[g, k] = -batch.advantage[g, k].item() * math.fsum(new) / len(new)
        slopes.append([[-batch.advantage[g, k].item() / len(new) / 15] * len(new) for k, new in enumerate(news)])
    found, gradient = gradients(ddpo, batch, form="score")
    torch.testing.assert_close(found, loss, rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)


def test_on_policy_the_loss_is_minus_the_advantage_and_both_forms_have_one_gradient() -> None:
    batch = random_batch("Groups")
    batch = replace(batch, steps=replace(batch.steps, old=batch.steps.logp.detach().clone()))
    loss, gradient = gradients(ddpo, batch)
    torch.testing.assert_close(loss, torch.where(batch.valid, -batch.advantage, 0.0))
    torch.testing.assert_close(gradient["steps"], gradients(ddpo, batch, form="score")[1]["steps"])
    stats = ddpo(batch)[1]
    assert stats["clip_ratio"].tolist() == stats["approx_kl"].tolist() == [0.0] * 5


def test_advantages_of_equal_rewards_leave_the_policy_as_it_is() -> None:
    batch = near_batch()
    batch = replace(batch, reward=torch.full_like(batch.reward, 0.3))
    loss, gradient = gradients(ddpo, replace(batch, advantage=standardised(batch)))
    assert (loss == 0).all()
    assert (gradient["steps"] == 0).all()


def test_a_constant_on_the_rewards_of_a_prompt_changes_nothing_but_under_the_batch_deviation() -> None:
    batch = near_batch()
    moved = replace(batch, reward=batch.reward + torch.arange(5.0, dtype=torch.float64)[:, None])

    def learned(of, std):
        return gradients(ddpo, replace(of, advantage=standardised(of, std=std)), **NEAR)[1]["steps"]

    for std in ("group", "none"):
        torch.testing.assert_close(learned(batch, std), learned(moved, std))
    shrunk = learned(moved, "batch").norm() / learned(batch, "batch").norm()
    assert shrunk < 0.9


def test_a_step_advantage_that_is_the_same_at_all_steps_is_the_members_own() -> None:
    batch = near_batch()
    spread = replace(batch, advantage=batch.advantage[..., None].expand(5, 3, 4))
    torch.testing.assert_close(ddpo(batch, **NEAR)[0], ddpo(spread, **NEAR)[0])


def test_the_mean_over_dimensions_narrows_ratios() -> None:
    """A log-prob that is a sum over 64 dimensions needs 64 times the room of their mean, to first order."""
    mean, total = (group([0.001 * d], advantage=[1.0]) for d in (1, 64))
    assert ddpo(mean, clip=2e-3)[1]["clip_ratio"].item() == 0
    assert ddpo(total, clip=2e-3)[1]["clip_ratio"].item() == 1
    assert ddpo(total, clip=64 * 2e-3)[1]["clip_ratio"].item() == 0


@pytest.mark.parametrize("a", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("gap", [-1e4, 1e4])
def test_finite_where_a_ratio_would_overflow(gap: float, a: float) -> None:
    batch = group([gap], advantage=[a])
    loss, gradient = gradients(ddpo, batch)
    assert loss.isfinite().all()
    assert gradient["steps"].isfinite().all()


def test_statistics_count_the_steps_of_present_members_only() -> None:
    """Ratios 1.5 and 1 of the present two, the absent one far away: half are outside, log(1.5)^2 / 4 on average."""
    batch = group([math.log(1.5), 0.0, 9.0], advantage=[1.0, -1.0, 0.0])
    stats = ddpo(replace(batch, valid=torch.tensor([[True, True, False]])), clip=0.2)[1]
    assert stats["clip_ratio"].item() == pytest.approx(0.5)
    assert stats["approx_kl"].item() == pytest.approx(math.log(1.5) ** 2 / 4)
