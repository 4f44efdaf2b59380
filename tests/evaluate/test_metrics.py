"""Worked numbers and identities of each metric; what all share is in tests/contract/test_metrics.py."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, logit, xlogy

from stages import images
from stages.evaluate.metrics.calibration import Calibration
from stages.evaluate.metrics.diversity import Diversity
from stages.evaluate.metrics.drift import Drift
from stages.evaluate.metrics.image_diversity import ImageDiversity
from stages.evaluate.metrics.kl import Kl
from stages.evaluate.metrics.length_controlled_win_rate import LengthControlledWinRate
from stages.evaluate.metrics.ranking_accuracy import RankingAccuracy
from stages.evaluate.metrics.score import Score
from stages.evaluate.metrics.surrogate_kl import SurrogateKl
from stages.evaluate.metrics.win_rate import WinRate


def run(metric, **columns) -> dict[str, float]:
    metric.update(**columns)
    return metric.compute()


def test_win_rate_of_all_wins_keeps_an_interval():
    found = run(WinRate(), prob=[1.0] * 10)
    assert found["standard_error"] == 0
    assert found["lower"] == pytest.approx(100 * 10 / (10 + 1.959964**2))  # Wilson at p = 1: n / (n + z^2)
    assert found["upper"] == 100


def test_win_rate_swapped_is_its_complement():
    prob = np.random.default_rng(0).uniform(size=30)
    one, other = run(WinRate(), prob=prob), run(WinRate(), prob=1 - prob)
    assert one["win_rate"] + other["win_rate"] == pytest.approx(100)
    assert one["lower"] + other["upper"] == pytest.approx(100)
    assert one["n_wins"] == other["n_wins_base"]


def biased(n: int = 4000) -> dict[str, np.ndarray]:
    """A judge that sees quality 0.5 and likes length with weight 1.2; the policy writes longer."""
    random = np.random.default_rng(3)
    base = random.uniform(100, 300, n)
    length = base + random.normal(60, 80, n)
    x = np.tanh((length - base) / (length - base).std(ddof=1))
    return {"prob": expit(0.5 + 1.2 * x), "length": length, "base_length": base}


def test_length_control_finds_the_truth_it_was_made_from():
    columns = biased()
    found = run(LengthControlledWinRate(prior=100.0), **columns)
    assert found["length_controlled_win_rate"] == pytest.approx(100 * expit(0.5), abs=1e-3)
    assert found["length_coefficient"] == pytest.approx(1.2, abs=1e-3)
    assert found["standard_error"] < 1e-3  # the labels carry no noise
    assert 100 * columns["prob"].mean() > found["length_controlled_win_rate"] + 5


def test_length_control_error_is_that_of_repeated_draws():
    """The sandwich error against the spread over 300 draws of coin-flip labels."""
    columns, random = biased(300), np.random.default_rng(4)
    found = [
        run(LengthControlledWinRate(), **columns | {"prob": random.uniform(size=300) < columns["prob"]})
        for _ in range(300)
    ]
    spread = np.std([row["length_controlled_win_rate"] for row in found])
    assert np.mean([row["standard_error"] for row in found]) == pytest.approx(spread, rel=0.12)
    truth = 100 * expit(0.5)
    assert 0.91 < np.mean([row["lower"] < truth < row["upper"] for row in found]) < 0.985


def test_length_control_swapped_is_its_complement():
    columns = biased(50)
    one = run(LengthControlledWinRate(), **columns)
    swapped = {"prob": 1 - columns["prob"], "length": columns["base_length"], "base_length": columns["length"]}
    other = run(LengthControlledWinRate(), **swapped)
    assert one["length_controlled_win_rate"] + other["length_controlled_win_rate"] == pytest.approx(100)
    assert one["length_coefficient"] == pytest.approx(other["length_coefficient"])


def test_length_control_with_a_narrow_prior_is_the_raw_win_rate():
    columns = biased(50)
    found = run(LengthControlledWinRate(prior=1e-4), **columns)
    assert found["length_controlled_win_rate"] == pytest.approx(100 * columns["prob"].mean(), abs=1e-4)


def test_length_control_survives_separation():
    """Length alone decides every label: without a prior the coefficient would run to infinity."""
    found = run(LengthControlledWinRate(), prob=[0.0, 0.0, 1.0, 1.0], length=[1, 2, 9, 8], base_length=[5, 5, 5, 5])
    assert 1 < found["length_coefficient"] < 5
    assert found["length_controlled_win_rate"] == pytest.approx(50, abs=1)


@pytest.mark.parametrize("prob", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
def test_length_control_of_one_sided_labels_is_the_raw_win_rate(prob):
    found = run(LengthControlledWinRate(), prob=prob, length=[1, 2, 3], base_length=[3, 3, 3])
    assert found["length_controlled_win_rate"] == 100 * prob[0]
    assert "standard_error" not in found


def test_kl_estimators_agree_with_the_exact_divergence():
    """Two distributions over three answers, sampled from the first; KL = sum p log(p / q)."""
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.3, 0.3, 0.4])
    drawn = np.random.default_rng(0).choice(3, 20_000, p=p)
    found = run(Kl(), logp=np.log(p)[drawn], ref_logp=np.log(q)[drawn], steps=np.full(20_000, 2))
    exact = float(np.sum(p * np.log(p / q)))
    assert found["kl"] == pytest.approx(exact, abs=4 * found["standard_error"])
    assert found["k3"] == pytest.approx(exact, abs=0.01)
    assert found["kl_per_token"] == pytest.approx(found["kl"] / 2)


def test_kl_of_a_policy_with_itself_is_zero():
    logp = np.random.default_rng(0).normal(-30, 5, 20)
    found = run(Kl(), logp=logp, ref_logp=logp, steps=np.full(20, 7))
    assert set(found.values()) == {0.0}


def pairs(n: int = 200) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    sums = ("chosen_logp", "rejected_logp", "chosen_ref", "rejected_ref")
    columns = {name: random.normal(-30, 6, n) for name in sums}
    columns |= {name: random.integers(1, 40, n) for name in ("chosen_steps", "rejected_steps")}
    return columns | {"pair_prob": random.uniform(0.5, 1, n)}


def test_ranking_at_the_reference():
    columns = pairs()
    same = columns | {"chosen_logp": columns["chosen_ref"], "rejected_logp": columns["rejected_ref"]}
    found = run(RankingAccuracy(), **same)
    assert found["ranking_accuracy"] == found["reference_accuracy"]
    assert found["reward_accuracy"] == 0.5
    assert found["flipped"] == 0


def test_idealized_accuracy_has_the_papers_limits():
    columns = pairs()
    certain = run(RankingAccuracy(beta=1e-4), **columns | {"pair_prob": np.full(200, 0.6)})
    assert certain["idealized_accuracy"] == 1  # beta -> 0
    loose = run(RankingAccuracy(beta=1e6), **columns)
    assert loose["idealized_accuracy"] == loose["reference_accuracy"]  # beta -> infinity
    undecided = run(RankingAccuracy(), **columns | {"pair_prob": np.full(200, 0.5)})
    assert undecided["idealized_accuracy"] == undecided["reference_accuracy"]
    hard = run(RankingAccuracy(beta=0.01), **columns | {"pair_prob": np.repeat([0.0, 1.0], 100)})
    assert hard["idealized_accuracy"] == 0.5  # clipped, finite odds


def test_idealized_policy_reaches_its_own_accuracy():
    """Log-probs built from R + log(odds)/beta: the gap closes, and DPO's soft loss is at its minimum, the entropy."""
    columns, beta = pairs(), 0.3
    reach = logit(columns["pair_prob"]) / beta
    ideal = columns | {
        "chosen_logp": columns["chosen_ref"] + reach / 2,
        "rejected_logp": columns["rejected_ref"] - reach / 2,
    }
    found = run(RankingAccuracy(beta=beta, clip=1e-6), **ideal)
    assert found["alignment_gap"] == 0
    assert found["reward_accuracy"] == 1
    p = columns["pair_prob"]
    m = beta * (ideal["chosen_logp"] - columns["chosen_ref"] - ideal["rejected_logp"] + columns["rejected_ref"])
    soft_loss = p * np.logaddexp(0, -m) + (1 - p) * np.logaddexp(0, m)
    np.testing.assert_allclose(soft_loss, -xlogy(p, p) - xlogy(1 - p, 1 - p), rtol=1e-9)


def test_a_pair_is_ranked_right_exactly_below_the_loss_that_its_difficulty_demands():
    """Theorem: L_w >= L_l if and only if DPO's loss <= softplus(-beta c), c = R_l - R_w."""
    columns, beta = pairs(), 0.1
    h = columns["chosen_logp"] - columns["rejected_logp"] - columns["chosen_ref"] + columns["rejected_ref"]
    c = columns["rejected_ref"] - columns["chosen_ref"]
    right = np.logaddexp(0, -beta * h) <= np.logaddexp(0, -beta * c)
    assert run(RankingAccuracy(), **columns)["ranking_accuracy"] == right.mean()


def test_calibration_of_true_probabilities_is_near_zero_and_in_chosen_order_too():
    """Labels drawn from the predictions, then each pair turned so that the label is 1."""
    random = np.random.default_rng(6)
    predicted = random.uniform(size=20_000)
    label = (random.uniform(size=20_000) < predicted).astype(float)
    turned = np.where(label == 1, predicted, 1 - predicted)
    for columns in ({"predicted": predicted, "pair_prob": label}, {"predicted": turned, "pair_prob": np.ones(20_000)}):
        found = run(Calibration(), **columns)
        assert found["calibration"] < 0.01
        assert found["brier"] == pytest.approx(1 / 6, abs=0.01)  # E p(1 - p) for uniform p


def test_calibration_of_an_overconfident_model():
    """0.9 predicted, 0.6 true: the gap is 0.3 in both of its bins."""
    metric = Calibration()
    found = run(metric, predicted=[0.9] * 10, pair_prob=[1.0] * 6 + [0.0] * 4)
    assert found["calibration"] == pytest.approx(0.3)
    assert found["accuracy"] == 0.6
    low, high = metric.table()
    assert (low["count"], high["count"]) == (10, 10)
    assert high["label"] == pytest.approx(0.6)
    assert low["predicted"] == pytest.approx(0.1)


def test_calibration_of_a_certain_wrong_prediction_is_finite():
    found = run(Calibration(), predicted=[0.0], pair_prob=[1.0])
    assert found["log_likelihood"] == pytest.approx(math.log(1e-6))


def test_diversity_at_its_ends():
    assert run(Diversity(), text=["one two three"] * 5)["diversity"] == 0
    assert run(Diversity(), text=["one two", "three four"])["diversity"] == 1
    loop = run(Diversity(), text=["go " * 50])
    assert loop["repetition"] == pytest.approx(1 - 1 / 47)  # 47 4-grams, one kind
    empty = run(Diversity(), text=["", ""])
    assert (empty["diversity"], empty["repetition"], empty["mean_length"]) == (1, 0, 0)


def test_diversity_equals_the_sum_over_pairs():
    texts = ["a b c d", "b c d e", "c d", "x y a b"]
    sets = [set(zip(text.split(), text.split()[1:])) for text in texts]
    shared = [len(one & two) / len(one) for i, one in enumerate(sets) for j, two in enumerate(sets) if i != j]
    assert run(Diversity(), text=texts)["diversity"] == pytest.approx(1 - np.mean(shared))


def test_drift_is_the_same_both_ways():
    longer = run(Drift(), length=[199, 199], base_length=[99, 99], entropy=[1.0, 1.0])
    shorter = run(Drift(), length=[99, 99], base_length=[199, 199], entropy=[1.0, 1.0])
    assert longer["drift"] == pytest.approx(math.log(2))
    assert shorter["drift"] == pytest.approx(math.log(2))
    assert shorter["length_difference"] == -100


def test_the_difference_of_scores_is_paired_by_prompt():
    """Hard and easy prompts spread both means; the gain of 1 on each is certain. Swapped sides change its sign."""
    base = np.random.default_rng(0).normal(0, 10, 40)
    found = run(Score(), score=base + 1, base_score=base)
    assert found["score"] - found["base"] == pytest.approx(1)
    assert [found[f"difference{end}"] for end in ("", "/lower", "/upper")] == pytest.approx([1, 1, 1])
    assert found["upper"] - found["lower"] > 4
    assert run(Score(), score=base, base_score=base + 1)["difference"] == pytest.approx(-1)


def test_the_interval_of_a_score_covers_as_often_as_it_says():
    random = np.random.default_rng(1)
    ends = [run(Score(), score=random.normal(0.3, 1, 60), base_score=random.normal(0, 1, 60)) for _ in range(400)]
    assert 0.92 < np.mean([row["difference/lower"] < 0.3 < row["difference/upper"] for row in ends]) < 0.98


def test_surrogate_kl_is_the_mean_log_ratio_and_zero_at_the_reference():
    random = np.random.default_rng(2)
    logp, ref = random.normal(-0.5, 0.01, 30), random.normal(-0.5, 0.01, 30)
    assert run(SurrogateKl(), logp=logp, ref_logp=ref)["surrogate_kl"] == pytest.approx((logp - ref).mean())
    assert set(run(SurrogateKl(), logp=logp, ref_logp=logp).values()) == {0.0}


def flat(value: float, side: int = 8, channels: int = 1) -> str:
    return images.encode(torch.full((channels, side, side), value))


def test_image_diversity_of_flat_pictures():
    """Two prompts, two answers each: 0 and 0.4 of the first, 1 and 1 of the second, in steps of 1/127.5.

    between: |0-1|, |0-1|, |0.4-1|, |0.4-1| -> 0.8; within: |0-0.4|, |1-1| -> 0.2
    """
    wide = [flat(value) for value in (0.0, 0.4, 1.0, 1.0)]
    same = [flat(0.5, side=32, channels=3)] * 4
    found = run(ImageDiversity(), image=wide, base_image=same, prompt=["p", "p", "q", "q"])
    assert found["image_diversity"] == pytest.approx(0.8, abs=0.005)
    assert found["within"] == pytest.approx(0.2, abs=0.005)
    assert (found["base"], found["base_within"]) == (0, 0)


def test_image_diversity_is_deaf_to_pixels_finer_than_its_copies():
    """A chequered picture of black and white pixels is grey to it, a chequered one of 4 x 4 blocks is not."""
    grid = torch.arange(32)
    fine = ((grid[:, None] + grid) % 2).float()[None] * 2 - 1
    coarse = ((grid[:, None] // 4 + grid // 4) % 2).float()[None] * 2 - 1
    for picture, far in ((fine, 0), (coarse, 1)):
        columns = {"image": [images.encode(picture), flat(0.0, side=32)], "prompt": ["p", "q"]}
        found = run(ImageDiversity(), **columns, base_image=columns["image"])
        assert found["image_diversity"] == pytest.approx(far, abs=0.01)
    assert "within" not in found
