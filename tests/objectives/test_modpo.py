import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.batches import Pairs
from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.modpo import modpo
from stages.policies.tabular import Tabular
from tests.objectives.build import check_against, minimize, pair, random_batch


def test_worked_numbers() -> None:
    """With h = 3 and 1, beta 0.2, margin -0.4, weight 0.8: q = (0.4 + 0.4) / 0.8 = 1, loss log(1 + e^-1) = 0.313262."""
    loss = modpo(pair(3.0, 1.0, margin=-0.4), beta=0.2, weight=0.8)[0]
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)


def test_independent_reference() -> None:
    beta, weight = 0.6, 0.3

    def reference(chosen, rejected, batch):
        loss, up, down = [], [], []
        for w, r, p, margin in zip(chosen, rejected, batch.prob.tolist(), batch.margin.tolist()):
            q = (beta * (math.fsum(w) - math.fsum(r)) - margin) / weight
            right = 1 / (1 + math.exp(-q))
            loss.append(-p * math.log(right) - (1 - p) * math.log(1 - right))
            up.append((right - p) * beta / weight / len(chosen))
            down.append(-up[-1])
        return loss, up, down

    check_against(modpo, random_batch("Pairs", seed=8), reference, to_reference=True, beta=beta, weight=weight)


def test_without_other_objectives_it_is_dpo() -> None:
    batch = random_batch("Pairs")
    plain = replace(batch, margin=torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(modpo(plain, beta=0.3, weight=1.0)[0], dpo(batch, beta=0.3)[0])
    torch.testing.assert_close(modpo(plain, beta=0.3, weight=0.4)[0], dpo(batch, beta=0.75)[0])


def test_weights_and_beta_have_no_scale() -> None:
    batch = random_batch("Pairs")
    scaled = replace(batch, margin=3 * batch.margin)
    torch.testing.assert_close(modpo(batch, beta=0.2, weight=0.3)[0], modpo(scaled, beta=0.6, weight=0.9)[0])


def test_at_the_reference_the_margin_decides() -> None:
    loss = modpo(pair(0.0, 0.0, margin=0.9), weight=0.6)[0]
    torch.testing.assert_close(loss, F.softplus(torch.tensor([1.5], dtype=torch.float64)))


def exact(policy: Tabular, reference: Tabular, label: Tensor, other: Tensor, w: tuple[float, float]) -> Pairs:
    """All pairs of answers of every prompt with exact probabilities by `label` and the margin of `other`."""
    prompts, n = label.shape
    first, second = torch.triu_indices(n, n, 1)
    asked = torch.arange(prompts).repeat_interleave(len(first))
    sides = [policy.steps(asked, policy.enumerate()[arm.repeat(prompts)], reference) for arm in (first, second)]
    gap, rest = ((r[:, first] - r[:, second]).flatten() for r in (label, other))
    return Pairs(*sides, prob=torch.sigmoid(gap), margin=w[1] * rest)


@pytest.mark.parametrize("turned", [False, True])
def test_its_optimum_is_that_of_the_weighted_rewards(turned: bool) -> None:
    """Whichever of the two objectives labels the pairs and whichever is the margin."""
    noise, beta, w = torch.Generator().manual_seed(2), 0.5, (0.3, 0.7)
    rewards = [torch.randn(3, 6, generator=noise, dtype=torch.float64) for _ in range(2)]
    reference, policy = Tabular.random(3, vocabulary=6, length=1, seed=5), Tabular(3, vocabulary=6, length=1)
    order = (1, 0) if turned else (0, 1)
    label, other = (rewards[i] for i in order)
    shares = (w[order[0]], w[order[1]])

    def loss() -> Tensor:
        return modpo(exact(policy, reference, label, other, shares), beta=beta, weight=shares[0])[0].mean()

    minimize(policy.logits, loss)
    best = (reference.sequence_log_probs() + (w[0] * rewards[0] + w[1] * rewards[1]) / beta).log_softmax(-1)
    found = policy.sequence_log_probs()
    assert (best.exp() * (best - found)).sum(-1).max() < 1e-6
