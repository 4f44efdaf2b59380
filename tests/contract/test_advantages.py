"""One battery for all advantages, found by name: what the contract promises of any of them."""

import inspect
import math
from dataclasses import replace

import pytest
import torch

from stages import parts
from stages.batches import Groups, apply
from stages.optimize.advantages.group import group
from stages.optimize.advantages.leave_one_out import leave_one_out
from tests.contract.test_objectives import another
from tests.objectives.build import random_batch

ADVANTAGES = parts.names("advantage")
every = pytest.mark.parametrize("name", ADVANTAGES)


def batch_of(b: int = 6, k: int = 5, seed: int = 0) -> Groups:
    """Groups of rewards without advantages; the first lacks a member, the second has one only."""
    batch = random_batch("Groups", b=b, k=k, seed=seed)
    valid = batch.valid.clone()
    valid[1, 1:] = False
    return replace(batch, valid=valid, advantage=None)


def rewarded(rows: list[list[float]]) -> Groups:
    """Full groups of these rewards."""
    reward = torch.tensor(rows, dtype=torch.float64)
    batch = random_batch("Groups", b=len(rows), k=len(rows[0]))
    return replace(batch, reward=reward, valid=torch.ones_like(reward, dtype=torch.bool))


def settings_of(found: parts.Part) -> list[dict]:
    """The defaults, and every setting at another value."""
    return [{}, *({setting: another(found, setting)} for setting in found.settings)]


@every
def test_spec_and_signature_follow_the_contract(name: str) -> None:
    found = parts.find("advantage", name)
    parameters = list(inspect.signature(found.function).parameters.values())
    text = inspect.getdoc(found.function) or ""
    assert found.spec.paper
    assert found.spec.equation
    assert found.feedback == "Groups"
    assert [p.name for p in parameters] == ["batch", *found.settings], "settings are keyword-only and have defaults"
    defaults = {setting: parameter.default for setting, parameter in found.settings.items()}
    assert parts.check(found, defaults) == defaults
    assert all(words in text for words in ("A", "Differences from the paper:", "Source:", f">>> {name}("))
    assert all(f"\n    {setting}: " in text for setting in found.settings)


@every
def test_shape_kind_and_no_gradient(name: str) -> None:
    found, batch = parts.find("advantage", name), batch_of()
    batch = replace(batch, reward=batch.reward.requires_grad_())
    for settings in settings_of(found):
        advantage = found.function(batch, **settings)
        assert advantage.shape == batch.reward.shape
        assert advantage.dtype == torch.float64
        assert not advantage.requires_grad
        assert (advantage[~batch.valid] == 0).all()
        assert (advantage[2:] != 0).all()


@every
def test_members_sum_to_zero_where_nothing_is_clamped(name: str) -> None:
    advantage = parts.find("advantage", name).function(batch_of())
    torch.testing.assert_close(advantage.sum(-1), torch.zeros(6, dtype=torch.float64))


@every
def test_a_constant_on_the_rewards_of_a_prompt_changes_nothing(name: str) -> None:
    function, batch = parts.find("advantage", name).function, batch_of()
    moved = replace(batch, reward=batch.reward + torch.arange(6.0, dtype=torch.float64)[:, None])
    torch.testing.assert_close(function(batch), function(moved))


@every
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7e8])
def test_equal_rewards_give_zero(name: str, value: float, kind: torch.dtype) -> None:
    """Exactly, though the mean of seven tenths is not a tenth in its last digit."""
    found = parts.find("advantage", name)
    batch = rewarded([[value] * 7, [value] * 7])
    batch = replace(batch, reward=batch.reward.to(kind))
    for settings in settings_of(found):
        assert (found.function(batch, **settings) == 0).all()


@every
def test_a_member_alone_has_nothing_to_be_compared_with(name: str) -> None:
    found = parts.find("advantage", name)
    for settings in settings_of(found):
        assert (found.function(batch_of(), **settings)[1] == 0).all()
        assert (found.function(rewarded([[0.7], [0.2]]), **settings) == 0).all()


@every
def test_absent_members_are_ignored(name: str) -> None:
    """Neither their rewards nor their places matter, and there may be a group of absent ones only."""
    found, batch = parts.find("advantage", name), batch_of()
    for settings in settings_of(found):
        wild = replace(batch, reward=torch.where(batch.valid, batch.reward, math.nan))
        expected = found.function(batch, **settings)
        assert torch.equal(found.function(wild, **settings), expected)
        wider = apply(batch, lambda x: torch.cat([x, torch.zeros_like(x)], 1))
        torch.testing.assert_close(found.function(wider, **settings)[:, :5], expected)
        nobody = replace(batch, valid=torch.zeros_like(batch.valid))
        assert (found.function(nobody, **settings) == 0).all()


@every
def test_order_changes_nothing(name: str) -> None:
    found, batch = parts.find("advantage", name), batch_of()
    members, groups = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 5, 0, 4, 1, 3])
    turned, moved = apply(batch, lambda x: x[:, members]), apply(batch, lambda x: x[groups])
    for settings in settings_of(found):
        advantage = found.function(batch, **settings)
        torch.testing.assert_close(found.function(turned, **settings), advantage[:, members])
        torch.testing.assert_close(found.function(moved, **settings), advantage[groups])


@every
def test_a_higher_reward_never_has_a_lower_advantage(name: str) -> None:
    found, batch = parts.find("advantage", name), batch_of()
    for settings in settings_of(found):
        advantage = found.function(batch, **settings)[2:]
        order = batch.reward[2:].argsort(-1)
        assert (advantage.gather(-1, order).diff() >= 0).all()


@every
def test_one_group_alone_is_itself_in_a_batch_unless_coupled(name: str) -> None:
    found, batch = parts.find("advantage", name), batch_of()

    def coupled(settings: dict) -> bool:
        alone = [found.function(apply(batch, lambda x, i=i: x[i : i + 1]), **settings) for i in range(6)]
        return not torch.allclose(torch.cat(alone), found.function(batch, **settings))

    assert any(map(coupled, settings_of(found))) is found.spec.couples


@every
def test_every_setting_changes_the_result(name: str) -> None:
    """Rewards far apart in one group of many, so that a limit of several deviations is felt."""
    found = parts.find("advantage", name)
    batch = rewarded([[100.0] + [0.0] * 59, [0.1 * i for i in range(60)]])
    for settings in settings_of(found)[1:]:
        assert not torch.equal(found.function(batch), found.function(batch, **settings)), settings


def test_no_two_are_equal_by_default() -> None:
    found = [parts.find("advantage", name).function(batch_of()) for name in ADVANTAGES]
    assert not any(torch.allclose(left, right) for i, left in enumerate(found) for right in found[:i])


# Worked numbers


def test_group_by_hand() -> None:
    """Rewards 3, 1, 1, -1: mean 1, deviation sqrt(2); with 10, 10, 10, 10 beside them 7 / (8 * 8) of the rest.

    All eight have mean 5.5 and mean square (9 + 1 + 1 + 1 + 400) / 8 = 51.5: deviation sqrt(51.5 - 30.25) = 4.609772.
    """
    batch = rewarded([[3.0, 1.0, 1.0, -1.0], [10.0] * 4])
    root = math.sqrt(2)
    for settings, first in (
        ({"eps": 1e-12}, [root, 0.0, 0.0, -root]),
        ({"std": "batch", "eps": 1e-12}, [2 / 4.609772, 0.0, 0.0, -2 / 4.609772]),
        ({"std": "none"}, [2.0, 0.0, 0.0, -2.0]),
        ({"std": "none", "clamp": 1.5}, [1.5, 0.0, 0.0, -1.5]),
        ({"eps": 1.0}, [2 / (root + 1), 0.0, 0.0, -2 / (root + 1)]),
    ):
        advantage = group(batch, **settings)
        assert advantage[0].tolist() == pytest.approx(first, abs=1e-6), settings
        assert advantage[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("wins", [1, 3, 7])
def test_group_of_wins_and_losses(wins: int) -> None:
    """With a share p of wins: sqrt((1 - p) / p) for a win, -sqrt(p / (1 - p)) for a loss."""
    p = wins / 8
    advantage = group(rewarded([[1.0] * wins + [0.0] * (8 - wins)]), eps=1e-12)[0]
    assert advantage[0].item() == pytest.approx(math.sqrt((1 - p) / p))
    assert advantage[-1].item() == pytest.approx(-math.sqrt(p / (1 - p)))


def test_group_has_no_scale_but_through_eps() -> None:
    batch = batch_of()
    scaled = replace(batch, reward=1000 * batch.reward)
    torch.testing.assert_close(group(batch, eps=1e-9), group(scaled, eps=1e-6))


@pytest.mark.parametrize("k", [4, 26, 27])
def test_group_limit_is_felt_from_27_members_on(k: int) -> None:
    """The largest advantage is that of one win among losses: sqrt(k - 1)."""
    batch = rewarded([[1.0] + [0.0] * (k - 1)])
    free = group(batch, eps=1e-12, clamp=math.inf)[0, 0].item()
    assert free == pytest.approx(math.sqrt(k - 1))
    assert group(batch, eps=1e-12)[0, 0].item() == pytest.approx(min(free, 5.0))


def test_a_constant_on_one_prompt_shrinks_all_advantages_under_the_batch_deviation() -> None:
    """Unlike under the other two: the deviation is that of the rewards as they are, as Flow-GRPO's code takes it."""
    batch = batch_of()
    moved = replace(batch, reward=batch.reward + torch.tensor([50.0, 0, 0, 0, 0, 0]).double()[:, None])
    before, after = group(batch, std="batch"), group(moved, std="batch")
    share = after[before != 0] / before[before != 0]
    torch.testing.assert_close(share, share[:1].expand_as(share))
    assert share[0] < 0.2


def test_leave_one_out_by_hand() -> None:
    """Rewards 4, 1, 1: the others average to 1, 2.5 and 2.5; without the third, to 1 and 4."""
    batch = rewarded([[4.0, 1.0, 1.0]])
    assert leave_one_out(batch)[0].tolist() == pytest.approx([3.0, -1.5, -1.5])
    ragged = replace(batch, valid=torch.tensor([[True, True, False]]))
    assert leave_one_out(ragged)[0].tolist() == pytest.approx([3.0, -3.0, 0.0])


def test_leave_one_out_is_the_difference_from_the_mean_times_k_over_k_minus_one() -> None:
    batch = rewarded([[0.3, -0.2, 0.9, 0.4, 0.0]])
    torch.testing.assert_close(leave_one_out(batch), 5 / 4 * group(batch, std="none"))
