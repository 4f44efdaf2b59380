import math
from dataclasses import replace

import pytest
import torch

from stages.batches import Groups, Steps
from stages.optimize.objectives.copg import copg
from stages.optimize.objectives.ipo import ipo
from stages.policies.tabular import Tabular
from tests.objectives.build import check_slopes, gradients, group, members, minimize, pair, random_batch


def test_worked_numbers() -> None:
    """Rewards 2, 1 and h = 1, -1 at beta 0.25: rt = 1.75 and 1.25, loss 0.25 / 0.5; slopes -+(rt_1 - rt_2)."""
    loss, gradient = gradients(copg, group([1.0, -1.0], reward=[2.0, 1.0]), beta=0.25)
    assert loss.item() == pytest.approx(0.5)
    assert gradient["steps"].flatten().tolist() == pytest.approx([-0.5, 0.5])
    stats = copg(group([1.0, -1.0], reward=[2.0, 1.0]), beta=0.25)[1]
    assert stats["gap"].item() == pytest.approx(0.5)
    assert stats["rewards/chosen"].item() == 0.0


def test_independent_reference() -> None:
    """The gradient is that of a policy gradient with leave-one-out advantages of rt, twice, over K."""
    batch, beta = random_batch("Groups", seed=4), 0.6
    loss, slopes = [], []
    for g, (news, refs) in enumerate(zip(*(members(batch, name) for name in ("logp", "ref")))):
        reward = batch.reward[g, batch.valid[g]].tolist()
        rt = [x - beta * (math.fsum(n) - math.fsum(r)) for x, n, r in zip(reward, news, refs)]
        k = len(rt)
        pairs = [(rt[i] - rt[j]) ** 2 / (2 * beta) for i in range(k) for j in range(i)]
        loss.append(math.fsum(pairs) / len(pairs))
        ahead = [x - (math.fsum(rt) - x) / (k - 1) for x in rt]
        slopes.append([[-2 * a / k / 5] * len(new) for a, new in zip(ahead, news)])
    found, gradient = gradients(copg, batch, beta=beta)
    torch.testing.assert_close(found, torch.tensor(loss, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)


def test_a_constant_on_the_rewards_of_a_prompt_changes_nothing() -> None:
    batch = random_batch("Groups")
    moved = replace(batch, reward=batch.reward + 8.0)
    torch.testing.assert_close(copg(batch)[0], copg(moved)[0])


def test_equal_regularized_rewards_have_no_gradient() -> None:
    loss, gradient = gradients(copg, group([2.0, -2.0, 0.0], reward=[1.0, -1.0, 0.0]), beta=0.5)
    assert loss.item() == 0.0
    assert (gradient["steps"] == 0).all()


def test_equal_answers_and_a_lone_one_teach_nothing() -> None:
    for batch in (group([0.4, 0.4], reward=[0.7, 0.7]), group([0.4], reward=[0.7])):
        loss, gradient = gradients(copg, batch)
        assert loss.item() == 0.0
        assert (gradient["steps"] == 0).all()


def test_a_reward_gap_of_one_half_is_ipo_up_to_a_factor() -> None:
    """(beta / 2) * (h_1 - h_2 - 1 / (2 beta))^2 with IPO's tau = beta."""
    beta = 0.3
    here = copg(group([0.8, -0.1], reward=[0.5, 0.0]), beta=beta)[0]
    there = ipo(pair(0.8, -0.1), tau=beta, length_normalize=False)[0]
    torch.testing.assert_close(here, beta / 2 * there)


def test_as_beta_falls_it_is_the_plain_pairwise_policy_gradient() -> None:
    gradient = gradients(copg, group([3.0, -1.0], reward=[0.9, 0.2]), beta=1e-9)[1]
    assert gradient["steps"].flatten().tolist() == pytest.approx([-0.7, 0.7])


def test_its_optimum_is_the_tilted_reference_whoever_drew() -> None:
    """Each prompt has a fixed group of 4 of its 6 answers that overlaps with another's: all are tied together."""
    reference, beta = Tabular.random(1, vocabulary=6, length=1, seed=3), 0.7
    policy = Tabular(1, vocabulary=6, length=1)
    reward = torch.randn(6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    arms = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5]])

    def loss() -> torch.Tensor:
        asked = torch.zeros(8, dtype=torch.long)
        steps = policy.steps(asked, arms.flatten()[:, None], reference)
        split = {name: x.unflatten(0, (2, 4)) for name, x in vars(steps).items() if x is not None}
        there = torch.ones(2, 4, dtype=torch.bool)
        return copg(Groups(Steps(**split), reward=reward[arms], valid=there), beta=beta)[0].mean()

    minimize(policy.logits, loss)
    assert loss().item() < 1e-12
    exact = (reference.sequence_log_probs() + reward / beta).softmax(-1)
    torch.testing.assert_close(policy.sequence_log_probs().exp(), exact, rtol=0, atol=1e-5)
