"""The audit on preferences with known faults."""

import pytest

from stages.label.audit import audit, leaks
from stages.pairs import make_pair, rejudge
from stages.panel import Panel, Tools
from tests.label.world import candidate, prompt


def pair(winner: str, loser: str, margin: float):
    two = [candidate(winner, 0, score=0.5 + margin / 2), candidate(loser, 1, score=0.5 - margin / 2)]
    return make_pair(prompt(), *two, two, 0.1)


def test_length_bias():
    """Margins 0.1, 0.2, 0.3 on length differences 1, 2, 3 correlate fully; one of them turned round does not."""
    pairs = [pair("w " * (1 + n), "w", n / 10) for n in (1, 2, 3)]
    found = audit([], pairs)
    assert found["length/correlation"] == pytest.approx(1)
    assert found["length/chosen_longer"] == 1
    found = audit([], [*pairs[:1], pair("a", "b", 0.2), pair("w", "w w", 0.3)])
    assert found["length/correlation"] == pytest.approx(-1)
    assert found["length/chosen_longer"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_agreement_of_each_reward_with_the_mix():
    rows = [(0.9, 1.0, 0.0), (0.5, 0.5, 0.5), (0.1, 0.0, 0.5)]
    told = [candidate(str(i), i, score=s, scores={"good": g, "bad": b}) for i, (s, g, b) in enumerate(rows)]
    found = audit(told, [])
    assert found["agreement/good"] == 1
    assert found["agreement/bad"] == 0
    assert found["ties"] == 0


def test_candidates_of_other_prompts_are_not_compared():
    two = [candidate("a", of="p", score=1.0), candidate("a", of="q", score=1.0)]
    assert audit(two, []) == {"duplicates": 0.0, "blank": 0.0}


def test_order_bias_of_a_judge_that_goes_by_place_alone():
    """P(first) = 0.8 whatever is shown: chosen gets 0.8 shown first and 0.2 shown second, every verdict flips."""
    found = audit([], [], orders={"place": [(0.8, 0.2)] * 4, "fair": [(0.7, 0.7), (0.4, 0.4)]})
    assert found == {
        "order/place/first": pytest.approx(0.8),
        "order/place/flips": 1.0,
        "order/fair/first": pytest.approx(0.5),
        "order/fair/flips": 0.0,
    }


def test_leaks_ignore_case_and_space_and_see_the_whole_dialogue():
    train = [prompt("a", "What is  tea?"), prompt("b", "What is milk?")]
    assert leaks(train, [prompt("x", "what is TEA?"), prompt("y", "What is water?")]) == 1


def test_pairs_of_a_panel_without_judges_have_no_orders():
    orders: dict = {}
    rejudge(Panel(rewards={"length": {}}), {"p": prompt()}, [pair("a", "b", 0.2)], Tools(), orders=orders)
    assert orders == {}
