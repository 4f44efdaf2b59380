import math
from dataclasses import replace

import pytest
import torch

from stages.batches import Pairs
from stages.optimize.objectives.cpo import cpo
from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.simpo import simpo
from tests.objectives.build import check_against, gradients, pair, random_batch, steps


def test_worked_numbers() -> None:
    """Chosen: L = (-1 - 1, -3), 2 and 1 steps, so n = 1.5; rejected: L = (-3, -3); beta = 1, alpha = 1.

    Pair 1: m = 1, loss = 0.313262 + 2 / 1.5 = 1.646595. Pair 2: m = 0, loss = 0.693147 + 3 / 1.5 = 2.693147.
    The mean is mean(0.313262, 0.693147) + (2 + 3) / 3, the mean over the three tokens.
    """
    batch = Pairs(steps([[-1.0, -1.0], [-3.0]]), steps([[-3.0], [-3.0]]))
    loss, _ = cpo(batch, beta=1.0)
    assert loss.tolist() == pytest.approx([1.646595, 2.693147], abs=1e-6)
    assert loss.mean().item() == pytest.approx((0.313262 + 0.693147) / 2 + 5 / 3, abs=1e-6)


def test_independent_reference() -> None:
    """The batch loss as the paper's code has it, with each pair in both orders with weights p and 1 - p."""
    beta, alpha = 0.3, 0.6

    def reference(chosen, rejected, batch):
        probs = batch.prob.tolist()
        tokens = math.fsum(p * len(w) + (1 - p) * len(r) for w, r, p in zip(chosen, rejected, probs))
        loss, up, down = [], [], []
        for w, r, p in zip(chosen, rejected, probs):
            m = beta * (math.fsum(w) - math.fsum(r))
            right, wrong = 1 / (1 + math.exp(-m)), 1 / (1 + math.exp(m))
            likelihood = (p * math.fsum(w) + (1 - p) * math.fsum(r)) / tokens  # its share of the batch's token mean
            loss.append(-p * math.log(right) - (1 - p) * math.log(wrong) - alpha * likelihood * len(chosen))
            slope = beta * (-p * wrong + (1 - p) * right) / len(chosen)
            up.append(slope - alpha * p / tokens)
            down.append(-slope - alpha * (1 - p) / tokens)
        return loss, up, down

    check_against(cpo, random_batch("Pairs", seed=4), reference, beta=beta, alpha=alpha)


def test_likelihood_is_the_mean_over_tokens_not_over_answers() -> None:
    """Tokens -1, -1, -1 and -4: mean over tokens 7/4, mean of the answers' means 5/2."""
    batch = Pairs(steps([[-1.0, -1.0, -1.0], [-4.0]]), steps([[-1.0], [-1.0]]))
    assert cpo(batch)[1]["nll_loss"].mean().item() == pytest.approx(7 / 4)


def test_is_dpo_with_a_zero_reference_and_a_likelihood_term() -> None:
    batch = random_batch("Pairs")
    bare = replace(
        batch,
        chosen=replace(batch.chosen, ref=torch.zeros_like(batch.chosen.logp)),
        rejected=replace(batch.rejected, ref=torch.zeros_like(batch.rejected.logp)),
    )
    loss, stats = cpo(batch, beta=0.2, alpha=0.7)
    torch.testing.assert_close(loss.detach(), dpo(bare, beta=0.2)[0].detach() + 0.7 * stats["nll_loss"])


def test_without_the_likelihood_term_a_constant_cancels_and_the_gradient_is_antisymmetric() -> None:
    loss, gradient = gradients(cpo, pair(-1.0, -2.0), beta=0.5, alpha=0.0)
    assert cpo(pair(-4.0, -5.0), beta=0.5, alpha=0.0)[0].item() == pytest.approx(loss.item())
    weight = 0.5 / (1 + math.exp(0.5))
    assert gradient["chosen"].item() == pytest.approx(-weight)
    assert gradient["rejected"].item() == pytest.approx(weight)


def test_a_vanishing_beta_leaves_fine_tuning_on_the_winner() -> None:
    """The preference term tends to log 2, its gradient to 0; every winner's token gets -alpha / tokens."""
    batch = Pairs(steps([[-1.0, -2.0], [-3.0]]), steps([[-3.0], [-3.0]]))
    loss, gradient = gradients(cpo, batch, beta=1e-12, alpha=0.9)
    assert loss.mean().item() == pytest.approx(math.log(2) + 0.9 * 2)
    assert gradient["chosen"][batch.chosen.mask].tolist() == pytest.approx([-0.3] * 3)
    assert gradient["rejected"].abs().max().item() < 1e-11


def test_labels_are_smoothed_as_in_conservative_dpo() -> None:
    """The likelihood of the winner stays: q = 0.8 of a certain pair, m = 1."""
    loss, stats = cpo(pair(-1.0, -2.0), beta=1.0, label_smoothing=0.2)
    smoothed = 0.8 * math.log1p(math.exp(-1)) + 0.2 * math.log1p(math.exp(1))
    assert loss.item() == pytest.approx(smoothed + 1.0)
    assert stats["nll_loss"].item() == 1.0


def test_by_means_without_the_likelihood_term_it_is_simpo() -> None:
    batch = random_batch("Pairs")
    ours = gradients(cpo, batch, alpha=0.0, beta=2.0, gamma=1.3, length_normalize=True)
    theirs = gradients(simpo, batch, beta=2.0, gamma=1.3)
    torch.testing.assert_close(ours, theirs)


def test_shaped_rewards_by_hand() -> None:
    """R = -1 and -2 in one step each, shape 0.5: 2 * (1 - e^0.5) = -1.297443 and 2 * (1 - e) = -3.436564, m = 2.139121.

    A step of chosen gets -sigmoid(-m) * e^0.5 and one of rejected sigmoid(-m) * e.
    """
    loss, gradient = gradients(cpo, pair(-1.0, -2.0), beta=1.0, alpha=0.0, shape=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2.139121)), abs=1e-6)
    wrong = 1 / (1 + math.exp(2.139121))
    assert gradient["chosen"].item() == pytest.approx(-wrong * math.exp(0.5), abs=1e-6)
    assert gradient["rejected"].item() == pytest.approx(wrong * math.e, abs=1e-6)


@pytest.mark.parametrize("shape", [1e-6, -1e-6])
def test_a_vanishing_shape_changes_nothing(shape: float) -> None:
    batch = random_batch("Pairs")
    torch.testing.assert_close(cpo(batch, shape=shape)[0], cpo(batch)[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [2.0, -2.0])
def test_shaped_rewards_of_impossible_answers_are_finite(shape: float) -> None:
    loss, gradient = gradients(cpo, pair(-1e3, -1.0), shape=shape)
    assert loss.isfinite()
    assert all(each.isfinite().all() for each in gradient.values())
