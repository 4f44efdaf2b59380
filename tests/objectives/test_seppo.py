import math
from dataclasses import replace

import pytest
import torch

from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.seppo import seppo
from tests.objectives.build import check_against, gradients, pair, random_batch

ANCHORS = ("sign", "indicator", "none")
FACTOR = {  # of the other side, by the sign of the good one's log-ratio
    "sign": {-1: -1, 0: 1, 1: 1},
    "indicator": {-1: 0, 0: 0, 1: 1},
    "none": {-1: 1, 0: 1, 1: 1},
}


@pytest.mark.parametrize(
    ("anchor", "chosen", "m"),
    [
        ("sign", 1.0, 0.5 * (1 - 2)),  # ahead of the reference: its sample is a loser
        ("sign", -1.0, 0.5 * (-1 + 2)),  # behind it: a second winner
        ("indicator", -1.0, 0.5 * -1),  # behind it: left alone
        ("none", -1.0, 0.5 * (-1 - 2)),
    ],
)
def test_worked_numbers(anchor: str, chosen: float, m: float) -> None:
    """h_rejected = 2 at beta = 0.5: the loss is log(1 + e^-m)."""
    assert seppo(pair(chosen, 2.0), beta=0.5, anchor=anchor)[0].item() == pytest.approx(math.log1p(math.exp(-m)))


@pytest.mark.parametrize("anchor", ANCHORS)
def test_independent_reference(anchor: str) -> None:
    """With soft labels: each side is the good one with its probability, and then carries the anchor."""
    beta, seen = 0.4, set()

    def reference(chosen, rejected, batch):
        loss, up, down = [], [], []
        for w, r, p in zip(chosen, rejected, batch.prob.tolist()):
            high, low, total, slopes = math.fsum(w), math.fsum(r), 0.0, [0.0, 0.0]
            for good, other, side, share in ((high, low, 0, p), (low, high, 1, 1 - p)):
                s = FACTOR[anchor][(good > 0) - (good < 0)]
                seen.add(s)
                m = beta * (good - s * other)
                total += share * math.log1p(math.exp(-m))
                wrong = share * beta / (1 + math.exp(m))
                slopes[side] -= wrong
                slopes[1 - side] += s * wrong
            loss.append(total)
            up.append(slopes[0] / len(chosen))
            down.append(slopes[1] / len(chosen))
        return loss, up, down

    batch = random_batch("Pairs", b=9, seed=9)
    check_against(seppo, batch, reference, to_reference=True, beta=beta, anchor=anchor)
    assert seen == set(FACTOR[anchor].values())


def test_without_the_anchor_it_is_dpo_on_its_own_samples() -> None:
    batch = replace(random_batch("Pairs"), prob=None)
    torch.testing.assert_close(seppo(batch, beta=0.3, anchor="none")[0], dpo(batch, beta=0.3)[0])


def test_ahead_of_the_reference_on_every_good_answer_it_is_dpo_too() -> None:
    batch = replace(random_batch("Pairs"), prob=None)
    ahead = replace(batch.chosen, logp=(batch.chosen.ref + 0.1).requires_grad_())
    batch = replace(batch, chosen=ahead)
    torch.testing.assert_close(seppo(batch, beta=0.3)[0], dpo(batch, beta=0.3)[0])


@pytest.mark.parametrize("anchor", ANCHORS)
def test_log_two_at_the_reference(anchor: str) -> None:
    """There a = 0: sign takes the sample for a loser, the indicator leaves it out."""
    loss, gradient = gradients(seppo, pair(0.0, 0.0), beta=0.6, anchor=anchor)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert gradient["chosen"].item() == pytest.approx(-0.3)
    assert gradient["rejected"].item() == pytest.approx(0.0 if anchor == "indicator" else 0.3)


def test_behind_the_reference_either_image_lowers_the_loss() -> None:
    _, gradient = gradients(seppo, pair(-0.5, 0.2), beta=0.5)
    assert gradient["chosen"].item() == gradient["rejected"].item() < 0


def test_the_anchor_is_told_and_has_no_gradient() -> None:
    loss, stats = seppo(random_batch("Pairs"), anchor="sign")
    assert not stats["anchor"].requires_grad
    assert [seppo(pair(h, 0.0))[1]["anchor"].item() for h in (-0.1, 0.0, 0.1)] == [-1.0, 1.0, 1.0]
    assert seppo(pair(0.1, -0.1, prob=0.75))[1]["anchor"].item() == pytest.approx(0.75 - 0.25)


def test_the_anchor_reads_errors_as_the_image_policy_tells_them() -> None:
    """The anchor a = e_ref - e_theta of the good image, with logp = -e / 2: the policy denoises it better, so a > 0."""
    better, worse = (pair(-e / 2 + 0.2, 0.0) for e in (0.3, 0.5))  # the reference's e is 0.4, moved to 0
    assert seppo(better)[1]["anchor"].item() == 1
    assert seppo(worse)[1]["anchor"].item() == -1


def test_on_answers_that_the_reference_explains_better_the_anchor_keeps_them_likely() -> None:
    """The good answer lags: with the anchor the other one rises with it, without it is pushed down."""
    batch = pair(-0.4, -0.1)
    with_it, without = (gradients(seppo, batch, beta=1.0, anchor=anchor)[1]["rejected"] for anchor in ("sign", "none"))
    assert with_it.item() < 0 < without.item()
