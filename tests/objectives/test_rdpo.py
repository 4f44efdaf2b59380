import math
from dataclasses import replace

import pytest
import torch

from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.rdpo import rdpo
from tests.objectives.build import check_against, gradients, pair, random_batch, steps

RATES = (0.0, 0.1, 0.3, 0.45)


def test_worked_numbers() -> None:
    """h_chosen = 1.5, h_rejected = -1, beta = 0.4: m = 1, softplus(-1) = 0.313262, softplus(1) = 1.313262, epsilon 0.2.

    loss = (0.8 * 0.313262 - 0.2 * 1.313262) / 0.6 = -0.020071;
    d loss / d h_chosen = -0.4 * (0.8 * 0.268941 + 0.2 * 0.731059) / 0.6 = -0.240910.
    """
    batch = replace(pair(0, 0), chosen=steps([[-1.0, 0.5]], [[-2.0, 0.0]]), rejected=steps([[-1.0]], [[0.0]]))
    loss, gradient = gradients(rdpo, batch, beta=0.4, epsilon=0.2)
    assert loss.item() == pytest.approx(-0.020071, abs=1e-6)
    assert gradient["chosen"].tolist() == [pytest.approx([-0.240910, -0.240910], abs=1e-6)]
    assert gradient["rejected"].tolist() == [pytest.approx([0.240910], abs=1e-6)]


@pytest.mark.parametrize("epsilon", RATES)
def test_independent_reference(epsilon: float) -> None:
    beta, scale = 0.3, 1 / (1 - 2 * epsilon)

    def reference(chosen, rejected, batch):
        loss, slope = [], []
        for w, r, p in zip(chosen, rejected, batch.prob.tolist()):
            m = beta * (math.fsum(w) - math.fsum(r))
            clean, turned = math.log1p(math.exp(-m)), math.log1p(math.exp(m))
            share = scale * ((1 - epsilon) * p - epsilon * (1 - p))  # of the loss that believes the label
            other = scale * ((1 - epsilon) * (1 - p) - epsilon * p)
            loss.append(share * clean + other * turned)
            slope.append(beta * (-share / (1 + math.exp(m)) + other / (1 + math.exp(-m))) / len(chosen))
        return loss, slope, [-s for s in slope]

    check_against(rdpo, random_batch("Pairs", seed=1), reference, to_reference=True, beta=beta, epsilon=epsilon)


def test_no_noise_is_dpo() -> None:
    batch = random_batch("Pairs")
    torch.testing.assert_close(gradients(rdpo, batch, epsilon=0.0), gradients(dpo, batch))


@pytest.mark.parametrize("epsilon", RATES)
@pytest.mark.parametrize("h", [-40.0, -1.0, 0.0, 0.3, 25.0])
def test_the_mean_over_flips_is_dpos_loss_of_the_clean_label(h: float, epsilon: float) -> None:
    """(1 - e) * loss(m) + e * loss(-m) = softplus(-m), for every m and e."""
    right, wrong = (rdpo(pair(s * h, 0.0), beta=1.0, epsilon=epsilon)[0].item() for s in (1, -1))
    clean = dpo(pair(h, 0.0), beta=1.0)[0].item()
    assert (1 - epsilon) * right + epsilon * wrong == pytest.approx(clean, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("epsilon", RATES)
def test_at_the_reference(epsilon: float) -> None:
    """A loss of log 2 whatever the rate, and a slope of -1 / (2 (1 - 2 e)) a unit of m."""
    loss, gradient = gradients(rdpo, pair(0.0, 0.0), beta=1.0, epsilon=epsilon)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-14)
    assert gradient["chosen"].item() == pytest.approx(-1 / (2 * (1 - 2 * epsilon)))


def test_a_large_margin_goes_on_to_gain() -> None:
    """The weight of a pair never falls below e / (1 - 2 e); conservative DPO stops at sigmoid(m) = 1 - e."""
    epsilon = 0.2
    slopes = [gradients(rdpo, pair(m, 0.0), beta=1.0, epsilon=epsilon)[1]["chosen"].item() for m in (-5.0, 0.0, 40.0)]
    assert slopes == sorted(slopes)
    assert slopes[-1] == pytest.approx(-epsilon / (1 - 2 * epsilon))
    assert rdpo(pair(300.0, 0.0), beta=1.0, epsilon=epsilon)[0].item() == pytest.approx(-300 * epsilon / 0.6)
    rest = math.log((1 - epsilon) / epsilon)
    smoothed = gradients(dpo, pair(rest, 0.0), beta=1.0, label_smoothing=epsilon)[1]["chosen"].item()
    assert smoothed == pytest.approx(0.0, abs=1e-12)


def test_simulated_flips_give_the_clean_gradient_on_average() -> None:
    """The mean of 100,000 flips is within five standard errors of DPO's gradient of the clean label."""
    epsilon, h = 0.3, 0.7
    flips = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) < epsilon
    kept, turned = (gradients(rdpo, pair(s * h, 0.0), beta=1.0, epsilon=epsilon)[1]["chosen"].item() for s in (1, -1))
    drawn = torch.where(flips, -turned, kept).double()
    clean = gradients(dpo, pair(h, 0.0), beta=1.0)[1]["chosen"].item()
    assert abs(drawn.mean().item() - clean) < 5 * drawn.std().item() / len(drawn) ** 0.5
