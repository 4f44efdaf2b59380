"""SRPO: worked numbers, plain floats, and on tables the closed forms of both sides of the game."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.batches import Pairs, Revisions
from stages.optimize.objectives.ipo import ipo
from stages.optimize.objectives.srpo import srpo
from tests.objectives import revisable
from tests.objectives.build import gradients, minimize, pair, parts_of, random_batch, values

BETA = 0.3
UTILITY = torch.tensor([1.5, 0.8, 0.0, -0.6, -1.2], dtype=torch.float64)
DRAWN = torch.tensor([[0.2] * 5, [0.02, 0.05, 0.13, 0.3, 0.5]], dtype=torch.float64)  # two who draw pairs
CYCLES = {"bradley-terry": 0.0, "cyclic": 0.25}


def test_worked_numbers() -> None:
    """With beta = 0.5 and p = 1 the target is 1/2; h(w) = 1, h(l) = 0.

    As revisions of l: h(w|l) = 2, h(l|l) = 0; of w: h(w|w) = 1, h(l|w) = 1. The improver's loss is the mean of
    (1/2 - 1/2 * 2)^2 and (1/2 - 0)^2, 1/4; the generator's (1/2 - 1/4 * (2 - 1 + 1 - 0))^2 = 0.
    """
    batch = Revisions(pair(1.0, 0.0), of_chosen=pair(1.0, 1.0), of_rejected=pair(2.0, 0.0))
    loss, stats = srpo(batch, beta=0.5, alpha=0.3)
    assert loss.tolist() == pytest.approx([0.3 * 0.25])
    assert stats["loss/generator"].tolist() == [0.0]
    assert stats["loss/improver"].tolist() == [0.25]
    assert stats["revisions/margins"].tolist() == [0.5]


def test_value_and_gradient_against_plain_floats() -> None:
    beta, alpha = 0.4, 0.3
    batch = random_batch("Revisions")
    h = {n: [sum(row) for row in values(s, reference=True)] for n, s in parts_of(batch).items()}
    b, losses, slopes = len(batch.answers.prob), [], {name: [] for name in h}
    for i, p in enumerate(batch.answers.prob.tolist()):
        w, l, ww, lw, wl, ll = (values[i] for values in h.values())  # noqa: E741
        rejected = p - 0.5 - beta * (wl - ll)
        chosen = p - 0.5 - beta * (ww - lw)
        generator = p - 0.5 - beta / 2 * (wl - lw + w - l)
        losses.append((1 - alpha) * generator**2 + alpha * (rejected**2 + chosen**2) / 2)
        one, two, three = (1 - alpha) * beta * generator, alpha * beta * rejected, alpha * beta * chosen
        for name, slope in zip(h, (-one, one, -three, one + three, -one - two, two), strict=True):
            slopes[name].append(slope / b)
    found, gradient = gradients(srpo, batch, beta=beta, alpha=alpha)
    torch.testing.assert_close(found, torch.tensor(losses, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    for name, steps in parts_of(batch).items():
        expected = torch.tensor(slopes[name], dtype=torch.float64)[:, None] * steps.mask
        torch.testing.assert_close(gradient[name], expected, rtol=1e-10, atol=1e-12)


def test_at_the_reference_both_losses_are_a_quarter() -> None:
    batch = Revisions(*(pair(0.0, 0.0) for _ in range(3)))
    loss, stats = srpo(batch)
    assert [loss.item(), stats["loss/generator"].item(), stats["loss/improver"].item()] == [0.25] * 3


def test_without_revisions_the_generators_loss_is_ipos() -> None:
    """(1/2 - beta/2 * d)^2 = beta^2 / 4 * (d - 1/beta)^2: IPO with tau = beta / 2."""
    answers = random_batch("Pairs")
    sides = (answers.chosen, answers.rejected)
    apart = [side.logp.detach().requires_grad_() for side in sides]
    still = Pairs(*(replace(side, logp=logp, ref=logp.detach()) for side, logp in zip(sides, apart)))
    certain = replace(answers, prob=None)
    found, slope = gradients(srpo, Revisions(certain, still, still), beta=BETA, alpha=0.0)
    expected, ipos = gradients(ipo, certain, tau=BETA / 2, length_normalize=False)
    torch.testing.assert_close(found, BETA**2 / 4 * expected)
    torch.testing.assert_close(slope["answers.chosen"], BETA**2 / 4 * ipos["chosen"])


def problem(cycle: float) -> revisable.Game:
    return revisable.game(revisable.beats(UTILITY, cycle).expand(2, -1, -1), DRAWN)


def learned(game: revisable.Game, beta: float = BETA, alpha: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of generator and improver at the minimum, and its loss, for each who draws pairs."""
    a = game.prefers.shape[-1]
    free = torch.randn(2, a + 1, a, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()

    def sides() -> tuple[Tensor, Tensor]:
        table = free.log_softmax(-1)
        return table[:, 0], table[:, 1:]

    def loss() -> Tensor:
        return revisable.loss(game, "srpo", *sides(), beta=beta, alpha=alpha).sum()

    minimize(free, loss)
    return *(each.detach() for each in sides()), loss().detach()


@pytest.mark.parametrize("cycle", CYCLES.values(), ids=CYCLES)
def test_the_closed_forms_have_no_loss(cycle: float) -> None:
    """Whoever drew the pairs, and whether or not any reward explains the preferences."""
    game = problem(cycle)
    generator, improver = (each.requires_grad_() for each in revisable.optimum(game.prefers, BETA))
    loss = revisable.loss(game, "srpo", generator, improver, beta=BETA)
    slopes = torch.autograd.grad(loss.sum(), [generator, improver])
    assert loss.abs().max() < 1e-12
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-7


@pytest.mark.parametrize("cycle", CYCLES.values(), ids=CYCLES)
def test_its_minimum_is_the_closed_forms_whoever_drew_the_pairs(cycle: float) -> None:
    game = problem(cycle)
    generator, improver, loss = learned(game)
    assert float(loss) < 1e-11
    for found, exact in zip((generator, improver), revisable.optimum(game.prefers, BETA)):
        torch.testing.assert_close(found.exp(), exact.exp(), rtol=0, atol=1e-4)


def test_the_identities_at_the_optimum() -> None:
    """(a) P(y beats z) - 1/2 = beta (h(y|z) - h(z|z)), within [-1/2, 1/2]; (b) the generator's, with cycles too."""
    prefers = revisable.beats(UTILITY, 0.25)
    generator, improver = revisable.optimum(prefers, BETA)
    gain = BETA * (improver - improver.diagonal()[:, None]).T  # [y,z]
    torch.testing.assert_close(gain, prefers - 0.5)
    assert gain.abs().max() <= 0.5
    across = improver.T - improver + generator[:, None] - generator[None, :]
    torch.testing.assert_close(BETA / 2 * across, prefers - 0.5)


def test_where_nothing_is_preferred_both_stay_at_the_reference() -> None:
    game = revisable.game(torch.full((2, 5, 5), 0.5, dtype=torch.float64), DRAWN)
    generator, improver, _ = learned(game)
    for found in (generator, improver):
        torch.testing.assert_close(found, torch.full_like(found, -math.log(5)), rtol=0, atol=1e-4)
