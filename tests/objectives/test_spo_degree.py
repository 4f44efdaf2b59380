import math
from dataclasses import replace

import pytest
import torch

from stages.batches import Pairs, Steps
from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.spo_degree import init, spo_degree
from tests.objectives.build import gradients, random_batch


def heads(levels: int, width: int = 2) -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(5)
    shapes = {"weight": (levels, width), "bias": (levels,)}
    return {n: torch.randn(s, generator=noise, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}


def side(ranks: list[list[float]], states: list[list[float]]) -> Steps:
    """Answers of one-dimensional states, each rank and state a token's own; the end is added, and read by none."""
    rank = torch.tensor([[*row, math.inf] for row in ranks], dtype=torch.float64)
    hidden = torch.tensor([[0.0, *row] for row in states], dtype=torch.float64)[..., None].requires_grad_()
    zero = torch.zeros_like(rank)
    return Steps(
        zero.clone().requires_grad_(), torch.ones_like(rank, dtype=torch.bool), zero, hidden=hidden, key_rank=rank
    )


def degree_loss(answer: Steps, head: dict[str, torch.Tensor], levels: int = 4) -> torch.Tensor:
    return spo_degree(Pairs(answer, answer), head=head, levels=levels)[1]["degree/loss"]


def test_worked_numbers() -> None:
    """States -1, 3 (the one key phrase): copies 0 and 3 have z = 1, -1; W = (1, 0, 0, 0), b = 0, gamma = 2.

    L_degree = (log(e + 3) - 1 + log(1/e + 3)) / 2 = (0.743668 + 1.214283) / 2 = 0.978976; loss log 2 + 1.957952.
    Copy 0 says p_0 = e / (e + 3) = 0.475367, so d loss / d z_0 = 2 / 2 * (0.475367 - 1) = -0.524633, half of it to
    each state. Copy 3 says p_0 = (1/e) / (1/e + 3) = 0.109232 = d loss / d z_3, all of it to the first.
    """
    batch = Pairs(side([[math.inf, 1.0]], [[-1.0, 3.0]]), side([[math.inf]], [[1.0]]))
    head = {"weight": torch.tensor([[1.0], [0], [0], [0]], dtype=torch.float64), "bias": torch.zeros(4).double()}
    loss, stats = spo_degree(batch, head=head, gamma=2.0)
    assert stats["degree/loss"].item() == pytest.approx(0.978976, abs=1e-6)
    assert loss.item() == pytest.approx(math.log(2) + 1.957952, abs=1e-6)
    loss.sum().backward()
    slope = batch.chosen.hidden.grad[0, :, 0].tolist()
    assert slope == pytest.approx([0.0, -0.262317 + 0.109232, -0.262317], abs=1e-6)
    assert stats["degree/accuracies"].item() == 0.5
    assert stats["degree/told"].item() == 1


def alone(states, ranks, weight, bias, levels):
    """L_degree of one answer, and its gradients by states, weight and bias, over plain floats."""
    width, read, ranks = len(weight[0]), states[1:], ranks[:-1]
    copies, seen = [], None
    for c in range(levels):
        kept = [t for t in range(len(read)) if not ranks[t] <= c / (levels - 1)]
        seen, before = kept, seen
        if kept and kept != before:
            copies.append((c, kept))
    by_state = [[0.0] * width for _ in states]
    by_weight, by_bias = [[0.0] * width for _ in weight], [0.0] * levels
    if len(copies) < 2:
        return 0.0, by_state, by_weight, by_bias
    loss = 0.0
    for c, kept in copies:
        z = [math.fsum(read[t][i] for t in kept) / len(kept) for i in range(width)]
        u = [math.fsum(w * x for w, x in zip(row, z)) + b for row, b in zip(weight, bias)]
        whole = math.fsum(map(math.exp, u))
        loss += (math.log(whole) - u[c]) / len(copies)
        for k in range(levels):
            slope = (math.exp(u[k]) / whole - (k == c)) / len(copies)
            by_bias[k] += slope
            for i in range(width):
                by_weight[k][i] += slope * z[i]
                for t in kept:
                    by_state[t + 1][i] += slope * weight[k][i] / len(kept)
    return loss, by_state, by_weight, by_bias


@pytest.mark.parametrize("levels", [2, 3, 4, 7])
def test_independent_reference(levels: int) -> None:
    """Value and gradients beside DPO's, by the label's expectation over which answer is preferred."""
    gamma, batch, head = 0.7, random_batch("Pairs", b=12, t=9, seed=3), heads(levels)
    sides = {name: getattr(batch, name) for name in ("chosen", "rejected")}
    for name, one in sides.items():
        sides[name] = replace(one, hidden=one.hidden.clone().requires_grad_())
    loss, _ = spo_degree(replace(batch, **sides), head=head, gamma=gamma, levels=levels)
    loss.sum().backward()
    expected, told = dpo(batch)[0].tolist(), set()
    slopes = {name: torch.zeros_like(value) for name, value in head.items()}
    for name, one in sides.items():
        for i, p in enumerate(batch.prob.tolist()):
            size, share = int(one.mask[i].sum()), gamma * (p if name == "chosen" else 1 - p)
            given = one.hidden[i, :size].tolist(), one.key_rank[i, :size].tolist()
            value, *found = alone(*given, head["weight"].tolist(), head["bias"].tolist(), levels)
            by_state, by_weight, by_bias = (torch.tensor(each, dtype=torch.float64) * share for each in found)
            expected[i] += share * value
            told.add(value > 0)
            torch.testing.assert_close(one.hidden.grad[i, :size], by_state, rtol=1e-10, atol=1e-14)
            slopes["weight"] += by_weight
            slopes["bias"] += by_bias
    assert told == {True, False}
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    for name, value in head.items():
        torch.testing.assert_close(value.grad, slopes[name], rtol=1e-10, atol=1e-12)


def test_without_weight_it_is_dpo() -> None:
    """Bit for bit, soft labels and all; head and states get a gradient of zero."""
    batch, head = random_batch("Pairs", b=8, t=6), heads(4)
    for one in (batch, replace(batch, prob=None)):
        hidden = one.chosen.hidden.clone().requires_grad_()
        whole = replace(one, chosen=replace(one.chosen, hidden=hidden))
        ours = gradients(lambda b, head=head: spo_degree(b, head=head, gamma=0.0, beta=0.3), whole)
        theirs = gradients(dpo, one, beta=0.3)
        if one.prob is None:
            assert torch.equal(ours[0], theirs[0])
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-14, atol=0)
        for name, slope in theirs[1].items():
            torch.testing.assert_close(ours[1][name], slope, rtol=1e-13, atol=1e-16)
        loss = spo_degree(whole, head=head, gamma=0.0)[0].sum()
        for slope in torch.autograd.grad(loss, [hidden, *head.values()]):
            assert (slope == 0).all()


@pytest.mark.parametrize("levels", [2, 4, 7])
def test_a_new_head_knows_nothing(levels: int) -> None:
    batch = random_batch("Pairs", b=12, t=9)
    head = init(batch, levels=levels, beta=0.1)
    assert {name: tuple(value.shape) for name, value in head.items()} == {"weight": (levels, 2), "bias": (levels,)}
    assert all(value.dtype == batch.chosen.hidden.dtype for value in head.values())
    stats = spo_degree(batch, head=head, levels=levels)[1]
    there = stats["degree/told"] == 1
    assert 0 < int(there.sum()) < 12
    torch.testing.assert_close(
        stats["degree/loss"][there], torch.full_like(stats["degree/loss"][there], math.log(levels))
    )
    assert (stats["degree/loss"][~there] == 0).all()


@pytest.mark.parametrize("ranks", [[math.inf, math.inf], [1.0], []], ids=["no phrase", "nothing else", "no token"])
def test_an_answer_that_nothing_can_be_removed_from_has_no_weight(ranks: list[float]) -> None:
    answer, head = side([ranks], [[1.0] * len(ranks)]), heads(4, 1)
    loss, stats = spo_degree(Pairs(answer, answer), head=head, gamma=5.0)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-15)
    assert stats["degree/told"].item() == stats["degree/accuracies"].item() == 0
    for slope in torch.autograd.grad(loss.sum(), [answer.hidden, *head.values()]):
        assert (slope == 0).all()


@pytest.mark.parametrize(
    ("phrases", "copies"), [(1, [0, 3]), (2, [0, 2, 3]), (3, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_copies_that_are_alike_count_once(phrases: int, copies: list[int]) -> None:
    """Of R phrases copy c lacks floor(c R / 3): a head of bias log(1, 2, 3, 4) and no weight tells which are there."""
    ranks = [math.inf, *((i + 1) / phrases for i in range(phrases))]
    head = {"weight": torch.zeros(4, 1).double(), "bias": torch.tensor([1.0, 2, 3, 4]).double().log()}
    loss = degree_loss(side([ranks], [[1.0] * len(ranks)]), head)
    assert loss.item() == pytest.approx(sum(math.log(10 / (c + 1)) for c in copies) / len(copies))


def test_more_and_more_is_removed_and_at_first_nothing() -> None:
    """With states 2^t and a head that is log-linear in z, each copy's z shows what it is made of."""
    ranks, states = [2 / 3, math.inf, 1 / 3, 1.0, 1 / 3], [1.0, 2.0, 4.0, 8.0, 16.0]
    answer = side([ranks], [states])
    for c, kept in enumerate(([1, 2, 4, 8, 16], [1, 2, 8], [2, 8], [2])):
        weight = torch.zeros(4, 1, dtype=torch.float64)
        weight[c] = 1e-7  # loss = log 4 + (mean of the z - 4 z_c) * 1e-7 / 4
        found = (degree_loss(answer, {"weight": weight, "bias": torch.zeros(4).double()}) - math.log(4)).item() / 1e-7
        z = [31 / 5, 11 / 3, 5.0, 2.0]
        assert z[c] == sum(kept) / len(kept)
        assert found == pytest.approx(sum(z) / 16 - z[c] / 4, abs=1e-4)


def test_the_degree_does_not_see_the_reference() -> None:
    batch, head = random_batch("Pairs", b=8, t=6), heads(4)
    other = replace(batch, chosen=replace(batch.chosen, ref=batch.chosen.ref * 3), rejected=batch.rejected)
    one, two = (spo_degree(each, head=head)[1] for each in (batch, other))
    assert torch.equal(one["degree/loss"], two["degree/loss"])
    assert not torch.equal(one["rewards/chosen"], two["rewards/chosen"])
