import math

import pytest
import torch

from stages.optimize.objectives.rso import rso
from tests.objectives.build import check_against, gradients, pair, random_batch


def test_worked_numbers() -> None:
    """With h = 6 and -4 at gamma = 0.05, z = 0.5: loss 0.5; if right three times in four, 0.75 * 0.5 + 0.25 * 1.5."""
    assert rso(pair(6.0, -4.0))[0].item() == pytest.approx(0.5)
    assert rso(pair(6.0, -4.0, prob=0.75))[0].item() == pytest.approx(0.75)


def test_independent_reference() -> None:
    gamma = 0.4

    def reference(chosen, rejected, batch):
        loss, up, down = [], [], []
        for w, r, p in zip(chosen, rejected, batch.prob.tolist()):
            z = gamma * (math.fsum(w) - math.fsum(r))
            loss.append(p * max(0, 1 - z) + (1 - p) * max(0, 1 + z))
            slope = gamma * (-p * (z < 1) + (1 - p) * (z > -1))
            up.append(slope / len(chosen))
            down.append(-slope / len(chosen))
        return loss, up, down

    check_against(rso, random_batch("Pairs", b=12, seed=5), reference, to_reference=True, gamma=gamma)


@pytest.mark.parametrize(("lead", "slope"), [(19.9, -0.05), (20.1, 0.0)])
def test_the_gradient_is_constant_up_to_the_lead_and_none_beyond(lead: float, slope: float) -> None:
    _, gradient = gradients(rso, pair(lead, 0.0))
    assert gradient["chosen"].item() == pytest.approx(slope)
    assert gradient["rejected"].item() == pytest.approx(-slope)


def test_at_the_reference_the_loss_is_one() -> None:
    torch.testing.assert_close(rso(pair(0.0, 0.0))[0], torch.ones(1, dtype=torch.float64))
