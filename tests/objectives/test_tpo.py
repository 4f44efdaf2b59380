import math
from dataclasses import replace

import pytest
import torch

from stages.batches import Groups, Pairs, Singles, Steps, apply
from stages.optimize.objectives.cpo import cpo
from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.nll import nll
from stages.optimize.objectives.tpo import tpo
from tests.objectives.build import check_slopes, gradients, group, members, random_batch

TRIPLE = [1.0, 0.5, 0.0]


def side(batch: Groups, k: int) -> Steps:
    """One member of every group, detached."""
    held = {name: value[:, k].detach() for name, value in vars(batch.steps).items() if value is not None}
    return Steps(**{**held, "logp": held["logp"].clone().requires_grad_()})


def triples(g: int = 6, seed: int = 0) -> Groups:
    """Random groups of three in the order gold, chosen, rejected."""
    batch = random_batch("Groups", b=g, k=3, seed=seed)
    return replace(batch, reward=torch.tensor([TRIPLE] * g).double(), valid=torch.ones(g, 3, dtype=torch.bool))


def test_worked_numbers() -> None:
    """Two groups, beta = 0.5, alpha = 2, gold of 1 step each: n = 1.

    1: gold -1, m = 0.5 * (-2 + 4) = 1: log(1 + e^-1) + 2 * 1 = 2.313262.
    2: gold -3, m = 0.5 * (-2 + 1) = -0.5: log(1 + e^0.5) + 2 * 3 = 6.974077.
    """
    one, two = group([-1.0, -2.0, -4.0], reward=TRIPLE), group([-3.0, -2.0, -1.0], reward=TRIPLE)
    both = Groups(
        Steps(*(torch.cat([getattr(b.steps, n) for b in (one, two)]).detach() for n in ("logp", "mask"))),
        reward=torch.cat([one.reward, two.reward]),
        valid=torch.cat([one.valid, two.valid]),
    )
    loss, stats = tpo(both, beta=0.5, alpha=2.0)
    assert loss.tolist() == pytest.approx([2.313262, 6.974077], abs=1e-6)
    assert stats["rewards/margins"].tolist() == [1.0, -0.5]
    assert stats["nll_loss"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("length_normalize", [True, False])
def test_independent_reference(length_normalize: bool) -> None:
    """Groups of four and of three, in any order; the third best of four gets nothing."""
    batch, beta, alpha, gamma = random_batch("Groups", b=5, k=4, seed=8), 0.4, 0.7, 0.3
    settings = {"beta": beta, "alpha": alpha, "gamma": gamma, "length_normalize": length_normalize}
    said = members(batch, "logp")
    orders = [
        sorted(range(len(rows)), key=lambda i, r=batch.reward[g, batch.valid[g]].tolist(): -r[i])
        for g, rows in enumerate(said)
    ]
    tokens = math.fsum(len(rows[order[0]]) for rows, order in zip(said, orders)) / len(said)
    loss, slopes = [], []
    for rows, (gold, chosen, *_, rejected) in zip(said, orders):
        sizes = [len(row) if length_normalize else 1 for row in rows]
        m = beta * (math.fsum(rows[chosen]) / sizes[chosen] - math.fsum(rows[rejected]) / sizes[rejected]) - gamma
        loss.append(math.log1p(math.exp(-m)) - alpha * math.fsum(rows[gold]) / tokens)
        pull = [0.0] * len(rows)
        pull[gold] = -alpha / tokens
        pull[chosen] -= beta / sizes[chosen] / (1 + math.exp(m))
        pull[rejected] += beta / sizes[rejected] / (1 + math.exp(m))
        slopes.append([[p / len(said)] * len(row) for p, row in zip(pull, rows)])
    found, gradient = gradients(tpo, batch, **settings)
    torch.testing.assert_close(found, torch.tensor(loss, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)


def test_with_chosen_for_gold_it_is_cpo() -> None:
    batch = triples()
    order = torch.tensor([1, 1, 2])  # gold is chosen itself
    doubled = apply(batch, lambda tensor: tensor[:, order])
    doubled = replace(doubled, reward=batch.reward)
    pairs = Pairs(side(batch, 1), side(batch, 2))
    ours, theirs = tpo(doubled, beta=0.3, alpha=0.8)[0], cpo(pairs, beta=0.3, alpha=0.8)[0]
    torch.testing.assert_close(ours.detach(), theirs.detach())


def test_without_gold_it_is_dpo_with_a_uniform_reference() -> None:
    batch = triples()
    uniform = [replace(side(batch, k), ref=torch.full_like(batch.steps.logp[:, k], -1.5).detach()) for k in (1, 2)]
    same = [replace(each, mask=torch.ones_like(each.mask)) for each in uniform]  # of equal length
    steps = replace(batch.steps, mask=torch.ones_like(batch.steps.mask))
    ours = tpo(replace(batch, steps=steps), beta=0.3, alpha=0.0)[0]
    torch.testing.assert_close(ours.detach(), dpo(Pairs(*same), beta=0.3)[0].detach())


def test_a_vanishing_beta_leaves_fine_tuning_on_gold() -> None:
    batch = triples()
    _, gradient = gradients(tpo, batch, beta=1e-14, alpha=0.9)
    mask = batch.steps.mask[:, 0]
    assert gradient["steps"][:, 0][mask].tolist() == pytest.approx([-0.9 / int(mask.sum())] * int(mask.sum()))
    assert gradient["steps"][:, 1:].abs().max().item() < 1e-12
    mean = nll(Singles(side(batch, 0)))[0].sum().item() / int(mask.sum())
    assert tpo(batch, beta=1e-14)[1]["nll_loss"].mean().item() == pytest.approx(mean)


def test_gold_is_a_mean_over_tokens_not_over_answers() -> None:
    """Gold of tokens -1, -1, -1 and of -4: mean over tokens 7/4, mean of the means 5/2."""
    logp = torch.tensor([[[-1.0, -1, -1], [-1, 0, 0], [-1, 0, 0]], [[-4, 0, 0], [-1, 0, 0], [-1, 0, 0]]])
    mask = logp < 0
    batch = Groups(Steps(logp, mask), reward=torch.tensor([TRIPLE] * 2), valid=mask[..., 0])
    assert tpo(batch)[1]["nll_loss"].mean().item() == pytest.approx(7 / 4)


def test_means_without_margin_at_equal_lengths_are_sums_with_beta_over_the_length() -> None:
    batch = triples()
    even = replace(batch, steps=replace(batch.steps, mask=torch.ones_like(batch.steps.mask)))
    n = batch.steps.mask.shape[-1]
    torch.testing.assert_close(tpo(even, beta=0.6, length_normalize=True)[0], tpo(even, beta=0.6 / n)[0])


def test_a_group_of_two_teaches_gold_alone() -> None:
    batch = triples(g=1)
    pair = replace(batch, valid=torch.tensor([[True, True, False]]))
    loss, gradient = gradients(tpo, pair)
    assert gradient["steps"][0, 1].abs().max().item() == 0
    assert (loss - tpo(pair)[1]["nll_loss"]).item() == pytest.approx(math.log(2))
