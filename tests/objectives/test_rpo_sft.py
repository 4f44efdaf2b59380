import math
from dataclasses import replace

import pytest
import torch

from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.rpo_sft import rpo_sft
from tests.objectives.build import gradients, pair, parts_of, random_batch, steps, values


def test_worked_numbers() -> None:
    """L_chosen = -3 of two tokens, R_chosen = -4, h_rejected = -1, beta = 0.5, eta = 0.2: m = 1.

    Summed: 0.313262 + 0.2 * 0.5 * 3 = 0.613262, slope of a chosen token -0.5 * 0.268941 - 0.1 = -0.234471.
    Averaged: 0.313262 + 0.1 * 1.5 = 0.463262, slope -0.134471 - 0.05 = -0.184471.
    """
    batch = replace(pair(0, 0), chosen=steps([[-1.0, -2.0]], [[-2.0, -2.0]]), rejected=steps([[-2.0]], [[-1.0]]))
    for normalize, wanted, slope in ((False, 0.613262, -0.234471), (True, 0.463262, -0.184471)):
        loss, gradient = gradients(rpo_sft, batch, beta=0.5, eta=0.2, length_normalize=normalize)
        assert loss.item() == pytest.approx(wanted, abs=1e-6)
        assert gradient["chosen"].tolist() == [pytest.approx([slope, slope], abs=1e-6)]
        assert gradient["rejected"].item() == pytest.approx(0.134471, abs=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_independent_reference(normalize: bool) -> None:
    beta, eta, batch = 0.3, 0.7, random_batch("Pairs", seed=1)
    loss, gradient = gradients(rpo_sft, batch, beta=beta, eta=eta, length_normalize=normalize)
    ratios = [values(side, reference=True) for side in (batch.chosen, batch.rejected)]
    plain = [values(side) for side in (batch.chosen, batch.rejected)]
    for i, p in enumerate(batch.prob.tolist()):
        m = beta * (math.fsum(ratios[0][i]) - math.fsum(ratios[1][i]))
        right, wrong = 1 / (1 + math.exp(-m)), 1 / (1 + math.exp(m))
        share = [len(side[i]) if normalize else 1 for side in plain]
        nll = [-math.fsum(side[i]) / n for side, n in zip(plain, share)]
        wanted = -p * math.log(right) - (1 - p) * math.log(wrong) + eta * beta * (p * nll[0] + (1 - p) * nll[1])
        assert loss[i].item() == pytest.approx(wanted, rel=1e-10)
        pull = beta * (-p * wrong + (1 - p) * right)
        slopes = pull - eta * beta * p / share[0], -pull - eta * beta * (1 - p) / share[1]
        for (name, side), slope in zip(parts_of(batch).items(), slopes):
            torch.testing.assert_close(gradient[name][i], slope / 5 * side.mask[i].double(), rtol=1e-10, atol=1e-14)


def test_without_eta_it_is_dpo() -> None:
    batch = random_batch("Pairs")
    torch.testing.assert_close(gradients(rpo_sft, batch, beta=0.1, eta=0.0), gradients(dpo, batch, beta=0.1))


@pytest.mark.parametrize("h", [-2.0, 0.0, 5.0])
def test_the_extra_gradient_is_on_the_chosen_side_alone(h: float) -> None:
    beta, eta = 0.4, 0.3
    plain, more = (gradients(rpo_sft, pair(h, 0.0), beta=beta, eta=e)[1] for e in (0.0, eta))
    assert more["chosen"].item() - plain["chosen"].item() == pytest.approx(-eta * beta)
    assert more["rejected"].item() == plain["rejected"].item()


def test_at_the_reference_the_sides_are_no_longer_opposite() -> None:
    _, gradient = gradients(rpo_sft, pair(0.0, 0.0), beta=0.4, eta=0.3)
    assert gradient["chosen"].item() == pytest.approx(-0.4 * (0.5 + 0.3))
    assert gradient["rejected"].item() == pytest.approx(0.2)


def test_a_weak_pull_with_the_product_kept_is_sft() -> None:
    """With beta -> 0 at eta * beta = 0.5: the gradient is that of 0.5 * NLL of the chosen answer."""
    batch = replace(random_batch("Pairs"), prob=None)
    _, gradient = gradients(rpo_sft, batch, beta=1e-9, eta=0.5e9)
    torch.testing.assert_close(gradient["chosen"], -0.5 / 5 * batch.chosen.mask.double(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradient["rejected"], torch.zeros_like(gradient["rejected"]), rtol=0, atol=1e-8)


def test_doubled_tokens_double_the_sum_and_leave_the_mean() -> None:
    once = replace(pair(0, 0), chosen=steps([[-1.0, -2.0]], [[0.0, 0.0]]))
    twice = replace(once, chosen=steps([[-1.0, -2.0, -1.0, -2.0]], [[0.0] * 4]))
    for normalize, factor in ((False, 2), (True, 1)):
        one, two = (rpo_sft(batch, length_normalize=normalize)[1]["nll"].item() for batch in (once, twice))
        assert two == pytest.approx(factor * one)


def test_a_winner_cannot_vanish() -> None:
    """The loss is infinite towards it, where DPO's falls as long as the loser falls faster."""
    low, lower = (replace(pair(h, 3 * h)) for h in (-1e2, -1e4))
    assert dpo(lower)[0].item() < dpo(low)[0].item()
    assert rpo_sft(lower, beta=0.1, eta=0.1)[0].item() > 50 > rpo_sft(low, beta=0.1, eta=0.1)[0].item()
