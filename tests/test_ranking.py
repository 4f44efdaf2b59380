"""What a reference's log-probs tell of labelled pairs before any training."""

import numpy as np
import pytest
import torch
from scipy.special import logit

from stages import ranking
from stages.cached import Cache
from stages.evaluate.metrics.ranking_accuracy import RankingAccuracy
from stages.records import Completion, Message, Pair, Ranking
from stages.reference.ranks import difficulty, summary

ASK = (Message(role="user", content="Which?"),)
RANDOM = np.random.default_rng(3)
GAPS = RANDOM.normal(0, 8, 500)  # R_w - R_l


def test_a_pair_is_ranked_right_if_and_only_if_its_loss_is_as_low_as_demanded():
    """On random L, R and beta; at equality of L the loss is the demanded one, and counts as right."""
    gains = RANDOM.normal(0, 8, 500)
    for beta in (0.01, 0.1, 1.0, 3.0):
        policy = GAPS + gains
        loss = np.logaddexp(0, -beta * gains)
        assert ((policy >= 0) == (loss <= ranking.demanded(GAPS, beta))).all()
        np.testing.assert_array_equal(np.logaddexp(0, -beta * -GAPS), ranking.demanded(GAPS, beta))


def test_a_loss_of_six_tenths_is_low_enough_where_the_reference_is_right():
    """Not above log 2 = 0.693, which is demanded at c = 0."""
    assert (ranking.demanded(np.abs(GAPS), 0.1) >= 0.6).all()


def test_idealized_accuracy_by_hand_and_in_the_limits():
    """R_w - R_l = -2 and p = 0.75: log 3 / beta = 1.0986 / beta is above 2 below beta = 0.549."""
    one, prob = np.array([-2.0]), np.array([0.75])
    assert ranking.idealized(one, prob, 0.54).all()
    assert not ranking.idealized(one, prob, 0.56).any()
    assert ranking.idealized(GAPS, np.full(500, 0.6), 1e-4).all()
    right = GAPS > 0
    assert (ranking.idealized(GAPS, np.full(500, 0.6), 1e9) == right).all()
    assert (ranking.idealized(GAPS, np.full(500, 0.5), 0.1) == right).all()
    with np.errstate(all="raise"):  # certain labels and the smallest beta
        assert ranking.idealized(GAPS, np.repeat([0.0, 1.0], 250), 0.01).mean() == 0.5


def test_thirds_cut_the_wrong_pairs_by_difficulty():
    parts = ranking.thirds(GAPS)
    assert sum(parts.values()).tolist() == (GAPS < 0).tolist()
    assert -GAPS[parts["easy"]].min() < -GAPS[parts["middle"]].max()
    assert (-GAPS[parts["easy"]]).max() <= (-GAPS[parts["middle"]]).min()
    assert (-GAPS[parts["middle"]]).max() <= (-GAPS[parts["hard"]]).min()
    assert ranking.thirds(np.array([1.0, -1.0])).keys() == {"easy"}
    assert ranking.thirds(np.array([1.0])) == {}


def test_flips_by_difficulty_in_the_metric():
    """Six wrong pairs at c = 1 .. 6, the policy rights the three easiest: 1, then 1/2, then 0."""
    reference = -np.arange(6.0) - 1
    metric = RankingAccuracy()
    metric.update(
        chosen_logp=[1.0, 1.0, 1.0, -1.0, -1.0, -1.0], rejected_logp=[0.0] * 6, chosen_ref=reference.tolist(),
        rejected_ref=[0.0] * 6, chosen_steps=[1] * 6, rejected_steps=[1] * 6, pair_prob=[0.9] * 6,
    )  # fmt: skip
    found = metric.compute()
    assert [found[f"flipped_{third}"] for third in ranking.THIRDS] == [1.0, 0.5, 0.0]
    assert (found["wrong_right"], found["wrong_wrong"], found["right_right"], found["right_wrong"]) == (0.5, 0.5, 0, 0)


def test_the_whole_order_of_two_is_the_accuracy_of_a_pair():
    sides = RANDOM.normal(size=(200, 2))
    assert ranking.exact(sides.tolist()) == (sides[:, 0] >= sides[:, 1]).mean()
    assert ranking.exact([[3.0, 2.0, 2.0], [3.0, 1.0, 2.0]]) == 0.5


def told() -> tuple[list[Pair], Cache]:
    """Three pairs of two-step answers under a reference, priced at two draws that differ by one nat."""
    sums = {"a": (-4.0, -2.0), "b": (-2.0, -4.0), "c": (-9.0, -1.0)}
    pairs = [
        Pair(id=name, messages=ASK, chosen=Completion(text="yes"), rejected=Completion(text="no"), prob=0.8)
        for name in sums
    ]
    cache = Cache()
    for name, values in sums.items():
        for side, value in zip(("chosen", "rejected"), values):
            for draw, mark in enumerate(("", "~1")):
                cache[f"{name}:{side}{mark}"] = torch.tensor([value / 2 + draw, value / 2])
    return pairs, cache


@pytest.mark.parametrize("draws", [1, 2])
def test_what_the_reference_stage_tells_of_pairs(draws: int):
    """Gaps -2, 2, -8: a third right; log 4 / beta = 1.386 / beta turns -2 below beta 0.69 and -8 below 0.17."""
    pairs, cache = told()
    found = summary(cache, pairs, draws)
    assert found["accuracy"] == found["normalized_accuracy"] == pytest.approx(1 / 3)
    assert (found["idealized_min"], found["idealized_max"]) == (pytest.approx(1 / 3), 1.0)
    assert found["difficulty_median"] == 2.0
    assert difficulty(cache, pairs, draws) == {"c": 8.0, "a": 2.0, "b": -2.0}
    assert list(difficulty(cache, pairs, draws)) == ["c", "a", "b"]
    assert logit(0.8) / 0.1 > 8 > 2 > logit(0.8) / 1.0


def test_what_the_reference_stage_tells_of_rankings_and_of_singles():
    members = tuple(Completion(text=text, score=score) for text, score in (("x", 1.0), ("y", 0.5), ("z", 0.1)))
    cache = Cache({f"r:{i}": torch.tensor([value]) for i, value in enumerate((-1.0, -3.0, -2.0))})
    assert summary(cache, [Ranking(id="r", messages=ASK, completions=members)], 1) == {"exact": 0.0}
    assert summary(Cache(), [], 1) == difficulty(Cache(), [], 1) == {}
