import math
from dataclasses import replace

import pytest
import torch

from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.dpo_gamma import dpo_gamma
from tests.objectives.build import gradients, pair, parts_of, random_batch, steps, values


def test_worked_numbers() -> None:
    """L = -3 and -2, R = -4 and -1, beta = 0.4, gamma = 0.5: m = 0.4 * (-1 - 0.5 * -3) = 0.2.

    loss = log(1 + e^-0.2) = 0.598139, slope -0.4 * sigmoid(-0.2) = -0.4 * 0.450166 = -0.180066.
    """
    batch = replace(pair(0, 0), chosen=steps([[-1.0, -2.0]], [[-2.0, -2.0]]), rejected=steps([[-2.0]], [[-1.0]]))
    loss, gradient = gradients(dpo_gamma, batch, beta=0.4, gamma=0.5)
    assert loss.item() == pytest.approx(0.598139, abs=1e-6)
    assert gradient["chosen"].tolist() == [pytest.approx([-0.180066, -0.180066], abs=1e-6)]
    assert gradient["rejected"].item() == pytest.approx(0.180066, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 2.0])
def test_independent_reference(gamma: float) -> None:
    beta, batch = 0.3, random_batch("Pairs", seed=1)
    loss, gradient = gradients(dpo_gamma, batch, beta=beta, gamma=gamma)
    sides = [batch.chosen, batch.rejected]
    for i, p in enumerate(batch.prob.tolist()):
        own, held = ([math.fsum(values(s, reference=r)[i]) for s in sides] for r in (False, True))
        ref = [logp - h for logp, h in zip(own, held)]
        m = beta * (own[0] - own[1] - gamma * (ref[0] - ref[1]))
        assert loss[i].item() == pytest.approx(p * math.log1p(math.exp(-m)) + (1 - p) * math.log1p(math.exp(m)))
        slope = beta * (-p / (1 + math.exp(m)) + (1 - p) / (1 + math.exp(-m))) / 5
        for (name, side), sign in zip(parts_of(batch).items(), (1, -1)):
            torch.testing.assert_close(gradient[name][i], sign * slope * side.mask[i].double(), rtol=1e-9, atol=1e-14)


def test_gamma_one_is_dpo() -> None:
    batch = random_batch("Pairs")
    torch.testing.assert_close(gradients(dpo_gamma, batch, gamma=1.0), gradients(dpo, batch))


def test_gamma_zero_needs_no_reference() -> None:
    """Loss and gradient are the same with another reference, and with none."""
    batch = random_batch("Pairs")
    moved, bare = (
        replace(batch, **{n: replace(s, ref=ref(s)) for n, s in parts_of(batch).items()})
        for ref in (lambda s: s.ref - 3.0 * torch.rand_like(s.ref), lambda s: None)
    )
    before = gradients(dpo_gamma, batch, gamma=0.0)
    for other in (moved, bare):
        torch.testing.assert_close(gradients(dpo_gamma, other, gamma=0.0), before, rtol=0, atol=0)


def test_a_pair_is_learnt_where_it_is_ranked_right_without_a_reference() -> None:
    """At gamma 0 the loss is below log 2 exactly where chosen is likelier; at gamma 1 the reference may make it so."""
    batch = replace(pair(0, 0), chosen=steps([[-3.0]], [[-6.0]]), rejected=steps([[-2.0]], [[-2.0]]))
    assert dpo_gamma(batch, gamma=0.0)[0].item() > math.log(2) > dpo_gamma(batch, gamma=1.0)[0].item()
    assert dpo_gamma(batch, gamma=0.0)[1]["rewards/accuracies"].item() == 0.0
