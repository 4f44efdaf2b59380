import math
from dataclasses import replace

import pytest
import torch

from stages.optimize.objectives.dpo import dpo
from tests.objectives.build import check_against, gradients, pair, random_batch, steps, swapped, values


def test_worked_numbers() -> None:
    """h_chosen = -1 - (-2) + 0.5 - 0 = 1.5, h_rejected = -1 - 0 = -1, beta = 0.4: m = 0.4 * 2.5 = 1.

    loss = log(1 + e^-1) = 0.313262, and d loss / d h_chosen = -beta * sigmoid(-1) = -0.4 * 0.268941 = -0.107577.
    """
    batch = replace(pair(0, 0), chosen=steps([[-1.0, 0.5]], [[-2.0, 0.0]]), rejected=steps([[-1.0]], [[0.0]]))
    loss, gradient = gradients(dpo, batch, beta=0.4)
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)
    assert gradient["chosen"].tolist() == [pytest.approx([-0.107577, -0.107577], abs=1e-6)]
    assert gradient["rejected"].tolist() == [pytest.approx([0.107577], abs=1e-6)]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_independent_reference(label_smoothing: float) -> None:
    beta = 0.3

    def reference(chosen, rejected, batch):
        loss, slope = [], []
        for w, r, p in zip(chosen, rejected, batch.prob.tolist()):
            m = beta * (math.fsum(w) - math.fsum(r))
            right, wrong = 1 / (1 + math.exp(-m)), 1 / (1 + math.exp(m))
            q = p * (1 - label_smoothing) + (1 - p) * label_smoothing
            loss.append(-q * math.log(right) - (1 - q) * math.log(wrong))
            slope.append(beta * (-q * wrong + (1 - q) * right) / len(chosen))
        return loss, slope, [-s for s in slope]

    batch = random_batch("Pairs", seed=1)
    check_against(dpo, batch, reference, to_reference=True, beta=beta, label_smoothing=label_smoothing)


def test_clipped_worked_numbers() -> None:
    """D3PO at clip 0.1: log-ratios 0.05 and 0.5 - (-0.2) = 0.7 count as 0.05 and log 1.1 = 0.09531, -0.3 as log 0.9.

    m = 2 * (0.05 + 0.09531 + 0.10536) = 0.50134, loss log(1 + e^-0.50134) = 0.473571, slope -2 * 0.377225 on the first.
    """
    batch = replace(pair(0, 0), chosen=steps([[0.05, 0.5]], [[0.0, -0.2]]), rejected=steps([[-0.3]], [[0.0]]))
    loss, gradient = gradients(dpo, batch, beta=2.0, clip=0.1)
    assert loss.item() == pytest.approx(0.473571, abs=1e-6)
    assert gradient["chosen"].tolist() == [pytest.approx([-0.754451, 0.0], abs=1e-6)]
    assert gradient["rejected"].tolist() == [[0.0]]
    stats = dpo(batch, beta=2.0, clip=0.1)[1]
    assert stats["clip_ratio"].item() == 0.75
    assert stats["rewards/margins"].item() == pytest.approx(2 * (0.75 + 0.3))


def test_clipped_independent_reference() -> None:
    """Value and gradient of the loss of D3PO's code, every step by itself; steps lie on both sides of both limits."""
    beta, clip, batch = 0.3, 0.6, random_batch("Pairs", seed=1)

    def held(h: float) -> float:
        return math.log(min(max(math.exp(h), 1 - clip), 1 + clip))

    ratios = (values(side, reference=True) for side in (batch.chosen, batch.rejected))
    found, gradient = gradients(dpo, batch, beta=beta, clip=clip)
    losses, seen = [], set()
    for i, (w, r, p) in enumerate(zip(*ratios, batch.prob.tolist())):
        m = beta * (math.fsum(map(held, w)) - math.fsum(map(held, r)))
        right, wrong = 1 / (1 + math.exp(-m)), 1 / (1 + math.exp(m))
        losses.append(-p * math.log(right) - (1 - p) * math.log(wrong))
        slope = beta * (-p * wrong + (1 - p) * right) / 5
        for name, side, sign in (("chosen", w, 1), ("rejected", r, -1)):
            kept = [1 - clip <= math.exp(h) <= 1 + clip for h in side]
            seen |= set(kept) | {"above" for h in side if math.exp(h) > 1 + clip}
            wanted = [sign * slope if inside else 0.0 for inside in kept]
            assert gradient[name][i][: len(side)].tolist() == pytest.approx(wanted, rel=1e-10, abs=1e-14)
    assert seen == {True, False, "above"}
    assert found.tolist() == pytest.approx(losses, rel=1e-10)


def test_a_clip_bounds_the_margin_of_a_step_and_is_not_felt_within() -> None:
    """|m| <= beta * log((1 + c) / (1 - c)): with D3PO's 0.1 and 0.1 the loss leaves log 2 by at most 0.0100."""
    limit = 0.1 * math.log(1.1 / 0.9)
    for h in (0.2, 5.0, 1e4):
        loss, gradient = gradients(dpo, pair(h, -h), beta=0.1, clip=0.1)
        assert loss.item() == pytest.approx(math.log1p(math.exp(-limit)), rel=1e-12)
        assert loss.item() > math.log(2) - 0.0101
        assert gradient["chosen"].item() == gradient["rejected"].item() == 0
    for h in (-0.1, 0.0, 0.09):
        (plain, free), (cut, held) = (gradients(dpo, pair(h, 0.05), beta=0.1, **c) for c in ({}, {"clip": 0.1}))
        assert torch.equal(plain, cut)
        assert free == held


def test_log_two_and_antisymmetric_gradient_at_the_reference() -> None:
    loss, gradient = gradients(dpo, pair(0.0, 0.0), beta=0.3)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert gradient["chosen"].item() == pytest.approx(-0.15)
    assert gradient["rejected"].item() == pytest.approx(0.15)


def test_a_constant_on_both_sides_cancels() -> None:
    assert dpo(pair(1.5, -0.5))[0].item() == pytest.approx(dpo(pair(8.5, 6.5))[0].item())


def test_swapping_sides_negates_the_margin() -> None:
    """softplus(-m) - softplus(m) = -m."""
    batch = replace(random_batch("Pairs"), prob=None)
    loss, stats = dpo(batch)
    torch.testing.assert_close(loss - dpo(swapped(batch))[0], -stats["rewards/margins"])


def test_smoothing_by_one_half_is_lowest_at_no_margin() -> None:
    losses = [dpo(pair(h, 0.0), beta=1.0, label_smoothing=0.5)[0].item() for h in (-0.1, 0.0, 0.1)]
    assert min(losses) == losses[1]


def test_time_is_summed_not_averaged() -> None:
    """Twice the steps, twice the margin."""
    short = replace(pair(0, 0), chosen=steps([[0.5]], [[0.0]]))
    long = replace(pair(0, 0), chosen=steps([[0.5, 0.5]], [[0.0, 0.0]]))
    assert dpo(long)[1]["rewards/margins"].item() == pytest.approx(2 * dpo(short)[1]["rewards/margins"].item())


def test_statistics() -> None:
    """Implicit rewards are beta * h; a tie counts as half an accurate pair."""
    _, stats = dpo(pair(2.0, -1.0), beta=0.5)
    assert {key: value.item() for key, value in stats.items()} == pytest.approx(
        {
            "rewards/chosen": 1.0,
            "rewards/rejected": -0.5,
            "rewards/margins": 1.5,
            "rewards/accuracies": 1.0,
            "logps/chosen": 2.0,
            "logps/rejected": -1.0,
        }
    )
    assert dpo(pair(1.0, 1.0))[1]["rewards/accuracies"].item() == 0.5
    assert dpo(pair(0.0, 1.0))[1]["rewards/accuracies"].item() == 0.0
