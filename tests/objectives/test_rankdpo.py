import itertools
import math
from dataclasses import replace

import pytest
import torch

from stages.batches import Pairs, apply
from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.rankdpo import dcg_swaps, rankdpo
from stages.reduce import better
from tests.objectives.build import check_slopes, gradients, group, members, random_batch

LADDER = [1.0, 2 / 3, 1 / 3, 0.0]


def weights(phi: list[float]) -> torch.Tensor:
    batch = group([0.0] * len(phi), reward=phi)
    return dcg_swaps(batch.reward, batch.valid, better(batch))[0]


def plain_weights(phi: list[float]) -> dict[tuple[int, int], float]:
    """The weight of each pair in order, from a sorted list: members with one score share the mean of their places."""
    places: dict[float, list[int]] = {}
    for place, score in enumerate(sorted(phi, reverse=True), 1):
        places.setdefault(score, []).append(place)
    rank = [sum(places[score]) / len(places[score]) for score in phi]
    return {
        (i, j): abs(2 ** phi[i] - 2 ** phi[j]) * abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
        for i, j in itertools.permutations(range(len(phi)), 2)
        if phi[i] > phi[j]
    }


def test_worked_numbers() -> None:
    """At phi = (1, 0), Delta = (2 - 1) * (1 / 0.693147 - 1 / 1.098612) = 0.532457.

    At beta = 1 and h = (2, 0) the loss is 0.532457 * log(1 + e^-2) = 0.532457 * 0.126928.
    """
    loss, stats = rankdpo(group([2.0, 0.0], reward=[1.0, 0.0]), beta=1.0)
    assert loss.item() == pytest.approx(0.532457 * 0.126928, rel=1e-5)
    told = {key: value.item() for key, value in stats.items()}
    assert told == pytest.approx({"rewards/margins": 2.0, "rewards/accuracies": 1.0, "delta": 0.532457}, rel=1e-5)


def test_independent_reference() -> None:
    batch, beta = random_batch("Groups", b=6, k=5, seed=6), 0.7
    batch = replace(batch, reward=(3 * batch.reward.sigmoid()).round() / 3)  # ties
    loss, slopes, ties = [], [], 0
    for g, (news, refs) in enumerate(zip(members(batch, "logp"), members(batch, "ref"))):
        phi = batch.reward[g, batch.valid[g]].tolist()
        ties += len(phi) - len(set(phi))
        h = [math.fsum(x) - math.fsum(r) for x, r in zip(news, refs)]
        total, slope = 0.0, [0.0] * len(h)
        for (i, j), delta in plain_weights(phi).items():
            m = beta * (h[i] - h[j])
            total += delta * math.log1p(math.exp(-m))
            wrong = beta * delta / (1 + math.exp(m)) / 6
            slope[i] -= wrong
            slope[j] += wrong
        loss.append(total)
        slopes.append([[s] * len(new) for s, new in zip(slope, news)])
    assert ties > 3
    found, gradient = gradients(rankdpo, batch, beta=beta)
    torch.testing.assert_close(found, torch.tensor(loss, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    check_slopes(batch, gradient["steps"], slopes)


def test_two_members_are_dpo_times_their_weight() -> None:
    batch = group([0.4, -0.9], reward=[1.0, 0.0])
    sides = (apply(batch.steps, lambda x, i=i: x[:, i]) for i in (0, 1))
    delta = 1 / math.log(2) - 1 / math.log(3)
    torch.testing.assert_close(rankdpo(batch, beta=0.6)[0], delta * dpo(Pairs(*sides), beta=0.6)[0])


def test_this_beta_is_twice_the_papers() -> None:
    """The paper: -log sigmoid(-beta * (s_i - s_j)) of errors s; the image policy: logp = -error / 2."""
    errors, reference, beta = [0.3, 0.7], [0.4, 0.5], 3.0
    batch = group([-e / 2 for e in errors], ref=[-e / 2 for e in reference], reward=[1.0, 0.0])
    s = [e - r for e, r in zip(errors, reference)]
    theirs = plain_weights([1.0, 0.0])[0, 1] * math.log1p(math.exp(beta * (s[0] - s[1])))
    assert rankdpo(batch, beta=2 * beta)[0].item() == pytest.approx(theirs)


def test_at_the_reference_it_is_log_two_times_all_weights() -> None:
    loss, stats = rankdpo(group([0.0] * 4, reward=LADDER))
    assert loss.item() == pytest.approx(math.log(2) * sum(plain_weights(LADDER).values()))
    assert stats["delta"].item() == pytest.approx(sum(plain_weights(LADDER).values()))
    assert stats["rewards/accuracies"].item() == 0.5


def test_weights_are_symmetric_and_largest_between_the_best_and_the_worst() -> None:
    delta = weights(LADDER)
    assert torch.equal(delta, delta.T)
    assert (delta >= 0).all()
    assert delta.max() == delta[0, 3]
    assert delta[0, 3] > delta[1, 2] > 0


def test_members_of_one_score_teach_each_other_nothing() -> None:
    delta = weights([1.0, 0.5, 0.5, 0.0])
    assert delta[1, 2] == 0
    assert delta[0, 1] == delta[0, 2] > 0
    loss, gradient = gradients(rankdpo, group([0.3, -0.3, 0.1], reward=[0.5] * 3))
    assert loss.item() == 0
    assert (gradient["steps"] == 0).all()


def test_order_on_file_changes_nothing_where_scores_tie() -> None:
    """A stable sort would give the two middle members different ranks."""
    h, phi = [0.4, -0.2, 0.6, 0.1], [1.0, 0.5, 0.5, 0.0]
    losses = {
        round(rankdpo(group([h[i] for i in order], reward=[phi[i] for i in order]), beta=1.0)[0].item(), 12)
        for order in itertools.permutations(range(4))
    }
    assert len(losses) == 1


def test_an_absent_member_is_as_if_it_were_not_there() -> None:
    full = group([0.3, -0.5, 0.2, 7.0], reward=[1.0, 0.5, 0.0, 0.75])
    ragged = replace(full, valid=torch.tensor([[True, True, True, False]]))
    short = group([0.3, -0.5, 0.2], reward=[1.0, 0.5, 0.0])
    torch.testing.assert_close(rankdpo(ragged, beta=0.4)[0], rankdpo(short, beta=0.4)[0])
