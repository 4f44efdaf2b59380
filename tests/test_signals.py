"""Signs of over-optimisation on distributions and series whose answer is known."""

import math

import pytest
import torch

from stages import signals
from stages.diagnose import ALARMS, Diagnose, alarms, troubled


def top(logits: torch.Tensor, k: int) -> torch.Tensor:
    return logits.softmax(-1).topk(k).values


@pytest.mark.parametrize(("vocabulary", "k"), [(10, 10), (50, 10), (1000, 3)])
def test_a_uniform_distribution_has_log2_k_bits_and_the_mass_k_of_v(vocabulary, k) -> None:
    found = top(torch.zeros(4, vocabulary, dtype=torch.float64), k)
    assert signals.entropy(found).tolist() == pytest.approx([math.log2(k)] * 4)
    assert found.sum(-1).tolist() == pytest.approx([k / vocabulary] * 4)


def test_a_sure_distribution_has_no_entropy_and_all_mass() -> None:
    logits = torch.full((1, 20), -torch.inf)
    logits[0, 3] = 0.0
    assert signals.entropy(top(logits, 10)).item() == 0.0
    assert top(logits, 10).sum().item() == 1.0


def test_a_constant_on_the_logits_changes_nothing_and_mass_grows_with_k() -> None:
    logits = torch.randn(6, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(signals.entropy(top(logits + 7, 10)), signals.entropy(top(logits, 10)))
    masses = torch.stack([top(logits, k).sum(-1) for k in range(1, 31)])
    assert (masses.diff(dim=0) > 0).all()
    torch.testing.assert_close(masses[-1], torch.ones(6, dtype=torch.float64))
    p = logits.softmax(-1)
    torch.testing.assert_close(signals.entropy(top(logits, 30)), -(p * p.log2()).sum(-1))


# ---------------------------------------------------------------------------------------------------- series

UP, SETTINGS = [2.0, 2.2, 2.4], Diagnose(patience=2, max_mass_loss=0.05, max_drift=1.0)


def looks(entropy: list[float], mass: list[float] | None = None, better: list[float] | None = None) -> list[dict]:
    mass, better = mass or [0.9] * len(entropy), better or [-2.0] * len(entropy)
    return [
        {"step": 20 * n, "better": b, "entropy": h, "mass": m}
        for n, (h, m, b) in enumerate(zip(entropy, mass, better, strict=True))
    ]


def first(seen: list[dict], settings: Diagnose = SETTINGS) -> dict[str, int]:
    """The look at which each alarm is first raised."""
    raised: dict[str, int] = {}
    for n in range(len(seen)):
        for name in alarms(settings, seen[: n + 1]):
            raised.setdefault(name, n)
    return raised


@pytest.mark.parametrize(
    ("entropy", "at"),
    [
        ([*UP, 2.3, 2.1], 4),
        ([*UP, 2.3, 2.35, 2.1, 2.0], 6),
        ([*UP, 2.3, 2.5, 2.4, 2.6], None),
        ([2.0, 1.8, 1.6, 1.4], None),
        ([2.0, 1.8, 2.1, 1.9, 1.8], 4),
        (UP, None),
    ],
    ids=["reversal", "a pause begins the count anew", "ups and downs", "never risen", "risen late", "still rising"],
)
def test_entropy_turns_where_it_has_risen_and_falls_twice_in_a_row(entropy, at) -> None:
    assert first(looks(entropy)) == ({} if at is None else {"entropy_reversal": at})


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_is_the_number_of_falls_and_trouble_begins_at_the_first(patience) -> None:
    seen = looks([*UP, 2.3, 2.2, 2.1])
    assert first(seen, Diagnose(patience=patience)) == {"entropy_reversal": 2 + patience}
    assert [troubled(seen[: n + 1]) for n in range(6)] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    ("entropy", "mass", "at"),
    [
        ([2.0, 2.1, 2.2], [0.9, 0.87, 0.85], 2),
        ([2.0, 2.1, 2.0], [0.9, 0.89, 0.85], None),
        ([2.0, 2.1, 2.2], [0.9, 0.88, 0.86], None),
        ([2.0, 2.0, 2.0], [0.9, 0.95, 1.0], None),
    ],
    ids=["leaks", "entropy falls with it", "not enough", "grows"],
)
def test_mass_leaks_where_entropy_does_not_fall(entropy, mass, at) -> None:
    assert first(looks(entropy, mass)) == ({} if at is None else {"mass_decline": at})


def test_chosen_answers_drift_away() -> None:
    assert first(looks([2.0] * 4, better=[-2.0, -1.5, -3.0, -3.1])) == {"chosen_drift": 3}
    assert first(looks([2.0] * 3, better=[-2.0, -1.0, 0.0])) == {}, "what gets likelier is no alarm"


def test_the_policys_own_answers_speak_where_there_are_some() -> None:
    seen = [{**one, "own_entropy": h, "own_mass": 0.9} for one, h in zip(looks([2.0] * 5), [*UP, 2.3, 2.1])]
    assert first(seen) == {"entropy_reversal": 4}
    still = [{**one, "own_entropy": 2.0, "own_mass": 0.9} for one in looks([*UP, 2.3, 2.1])]
    assert first(still) == {}


def test_without_tokens_only_the_likelihood_speaks() -> None:
    seen = [{"step": n, "better": value} for n, value in enumerate([-0.2, -0.5, -1.3])]
    assert first(seen) == {"chosen_drift": 2}


def test_every_alarm_says_why_in_one_line() -> None:
    seen = looks([*UP, 2.3, 2.2], [0.9] * 5, [-2.0] * 4 + [-4.0]), looks([2.0, 2.1], [0.9, 0.5])
    told = {name: why for one in seen for name, why in alarms(SETTINGS, one).items()}
    assert set(told) == set(ALARMS)
    assert told["entropy_reversal"].endswith("had risen and has fallen 2 times in a row, to 2.20 bits")
    assert told["mass_decline"] == "the 10 likeliest tokens hold 50.0% of the probability, 90.0% at step 0"
    assert told["chosen_drift"] == "the chosen answers have lost 2.00 nats a token since step 0"
