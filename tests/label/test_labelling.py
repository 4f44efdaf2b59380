"""The panel: what it refuses, how it mixes, and what a pair says of its scores."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import labelling
from stages.errors import UserError
from stages.labelling import sigmoid
from stages.pairs import make_pair, ordered, rejudge
from stages.panel import Panel, Tools, apart, check, needs
from stages.records import Pair
from tests.label.world import batch, candidate, prompt, tools

JUDGED = Panel(judges={"self_pairwise": {}})


class Opinion:
    """A judge's model with a fixed opinion: log-odds = value of the first - value of the second + a bias to A."""

    def __init__(self, bias: float = 0.0, **values: float) -> None:
        self.bias, self.values = bias, values

    def next_token_logits(self, prompts, words):
        rows = []
        for asked in prompts:
            _, a, b = asked.messages[0].content.split(":\n")[1:]
            gap = self.values[a.split("\n")[0]] - self.values[b.split("\n")[0]] + self.bias
            rows.append([math.log(sigmoid(gap if "A" in word else -gap)) for word in words])
        return torch.tensor(rows)


def ask_both(opinion: Opinion, first: str, second: str, panel: Panel = JUDGED) -> float:
    one, two = candidate(first, 0), candidate(second, 1)
    return labelling.compare(panel, [prompt()], [one], [two], Tools(policy=opinion))[0]


# ---------------------------------------------------------------------------------------------------- the panel


@pytest.mark.parametrize(
    ("panel", "told"),
    [
        (
            {"rewards": {"relevanse": {}}},
            "label.rewards.relevanse: no reward is called 'relevanse'; did you mean 'relevance'",
        ),
        ({"judges": {"self": {}}}, "label.judges.self: no judge is called 'self'"),
        ({"rewards": {"held_out": {"low": 3}}}, "no reward is called 'held_out'; name the part: `name: ...`; known: "),
        (
            {"rewards": {"long": {"name": "lenght"}}},
            "label.rewards.long.name: no reward is called 'lenght'; did you mean 'length'",
        ),
        ({"rewards": {"long": {"name": 3}}}, "label.rewards.long.name: no reward is called '3'"),
        ({"rewards": {"long": {"name": "length", "lo": 3}}}, "rewards.long: reward 'length' has no setting 'lo'"),
        (
            {"rewards": {"length": {"lo": 3}}},
            "label.rewards.length: reward 'length' has no setting 'lo'; did you mean 'low'",
        ),
        ({"rewards": {"exact": {"wieght": 1}}}, "reward 'exact' has no setting 'wieght'; did you mean 'weight'"),
        ({"rewards": {"length": {"low": 0}}}, "label.rewards.length.low: low = 0"),
        ({"rewards": {"length": {"weight": -1}}}, "label.rewards.length.weight: weight = -1"),
        ({"rewards": {"length": {"weight": "2"}}}, "label.rewards.length.weight: weight = '2'"),
        ({"rewards": {"length": {"weight": math.nan}}}, "weight = nan"),
        ({"rewards": {"length": {"weight": 0}}}, "no reward or judge has a weight"),
        ({}, "no reward or judge has a weight"),
    ],
)
def test_check_names_the_fault_and_its_place(panel, told):
    with pytest.raises(UserError, match=f"params.yaml.*{told}"):
        check(Panel(**panel))


def test_a_part_may_sit_there_twice_under_keys_of_its_own():
    """Nine words: 1/2 of the one's 18, all of the other's 9; weights 1 and 2: (1/2 + 2) / 3."""
    panel = Panel(rewards={"length": {"low": 18}, "short": {"name": "length", "low": 9, "weight": 2}})
    assert [(seat.key, seat.part.name, seat.weight) for seat in check(panel)] == [
        ("length", "length", 1.0),
        ("short", "length", 2.0),
    ]
    (found,) = labelling.score(panel, [prompt()], [candidate("word " * 9)], Tools())
    assert found.scores == {"length": 0.5, "short": 1.0}
    assert found.score == pytest.approx(2.5 / 3)


def test_judges_are_told_apart_by_their_keys():
    panel = Panel(judges={"one": {"name": "self_pairwise"}, "other": {"name": "self_pairwise", "weight": 0.5}})
    orders: dict = {}
    rows = [candidate(text, i, score=score) for i, (text, score) in enumerate([("a", 0.1), ("b", 0.9)])]
    pair = make_pair(prompt(), rows[1], rows[0], rows, 0.1)
    rejudge(panel, {"p": prompt()}, [pair], Tools(policy=Opinion(a=0.0, b=1.0)), orders=orders)
    assert list(orders) == ["one", "other"]
    assert orders["one"] == orders["other"]


SHARED = [
    ({"length": {}}, {}, "rewards.length: 'length' made labels too"),
    ({"length": {"weight": 0.5}}, {}, "'length' made labels too"),
    ({"long": {"name": "length", "low": 20}}, {}, "rewards.long: 'length' made labels too"),
    ({}, {"self": {"name": "self_pairwise"}}, "judges.self: 'self_pairwise' made labels too"),
    ({"short": {"name": "length", "low": 3}}, {}, "'short' is the key of another reward in label; give"),
    ({"length": {"low": 3}}, {}, r"'length' is the key .*; give it a key of its own: `length_too: \{name: length"),
]


def test_the_same_part_with_other_settings_is_somebody_else():
    other = Panel(rewards={"chrf": {}, "digit_held_out": {"name": "digit", "half": "second"}})

    def label(half: str) -> Panel:
        return Panel(rewards={"digit": {"half": half}}, judges={"self_pairwise": {}})

    apart(label("first"), other, where="params.yaml evaluate")
    with pytest.raises(UserError, match="'digit' made labels too"):
        apart(label("second"), other, where="params.yaml evaluate")


@pytest.mark.parametrize(("rewards", "judges", "told"), SHARED, ids=[told[-24:] for *_, told in SHARED])
def test_who_made_labels_is_not_independent_under_another_key_or_weight(rewards, judges, told):
    """Settings are compared as they are filled in: 20 is the default of `low`."""
    label = Panel(rewards={"length": {}, "short": {"name": "length", "low": 5}}, judges={"self_pairwise": {}})
    with pytest.raises(UserError, match=f"params.yaml evaluate.*{told}"):
        apart(label, Panel(rewards=rewards, judges=judges), where="params.yaml evaluate.independent")


def test_needs_are_those_of_the_parts():
    panel = Panel(rewards={"relevance": {}, "length": {}}, judges={"self_pairwise": {"weight": 0.5}})
    assert needs(panel) == {"encoder", "model"}


# ---------------------------------------------------------------------------------------------------- scores


def test_score_is_the_weighted_mean_on_the_scale_of_zero_to_one():
    """Sentiment 0.6369 in [-1, 1] is 0.81845; length 5/20 is 0.25; weights 1 and 3: (0.81845 + 0.75) / 4."""
    panel = Panel(rewards={"sentiment": {}, "length": {"weight": 3, "low": 20}})
    (found,) = labelling.score(panel, [prompt()], [candidate("I love it it it.")], Tools())
    assert found.scores == {"sentiment": 0.6369, "length": 0.25}
    assert found.score == pytest.approx((0.81845 + 3 * 0.25) / 4)


def test_a_reward_that_does_not_apply_gives_its_weight_to_the_others():
    panel = Panel(rewards={"exact": {"weight": 9}, "length": {"low": 2}})
    found = labelling.score(
        panel, [prompt(), prompt("q", answer="4")], [candidate("5"), candidate("5", of="q")], Tools()
    )
    assert [c.score for c in found] == [0.5, pytest.approx(0.05)]
    assert found[0].scores == {"length": 0.5}


def test_a_weight_of_zero_records_and_does_not_decide():
    panel = Panel(rewards={"length": {"low": 2}, "sentiment": {"weight": 0}})
    (found,) = labelling.score(panel, [prompt()], [candidate("great")], Tools())
    assert found.score == 0.5
    assert found.scores["sentiment"] > 0.6


def test_score_is_none_where_nothing_applies_and_best_of_n_reads_it_as_the_middle():
    panel = Panel(rewards={"exact": {}})
    assert labelling.score(panel, [prompt()], [candidate("4")], Tools())[0].score is None
    assert labelling.mixed(panel, Tools())([prompt()], [candidate("4")]) == [0.5]


def test_score_keeps_order_beyond_one_chunk():
    texts = ["w " * (1 + i % 7) for i in range(2 * labelling.CHUNK + 3)]
    rows = [candidate(text, i) for i, text in enumerate(texts)]
    found = labelling.score(Panel(rewards={"length": {"low": 7}}), [prompt()] * len(rows), rows, Tools())
    assert [c.score for c in found] == [(1 + i % 7) / 7 for i in range(len(rows))]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_names_reward_and_candidate(bad):
    broken = Tools(scorer=lambda prompts, candidates: [0.0, bad])
    with pytest.raises(
        UserError, match=r"candidate p/1: reward 'reward_model' gave (nan|inf), outside its range \[0, 1\]"
    ):
        labelling.score(
            Panel(rewards={"reward_model": {}}), [prompt()] * 2, [candidate("a", 0), candidate("b", 1)], broken
        )


def test_align_names_a_candidate_without_its_prompt():
    assert labelling.align([prompt("p"), prompt("q")], [candidate("a", of="q")]) == [prompt("q")]
    with pytest.raises(UserError, match="candidate z/0: its prompt 'z' is not among the prompts"):
        labelling.align([prompt()], [candidate("a", of="z")])


def test_judges_alone_score_by_tournament():
    """Values 0, 1, 3 as log-odds: the best beats the others with the mean of sigmoid(3) and sigmoid(2)."""
    rows = [candidate(text, i) for i, text in enumerate("abc")]
    model = Opinion(bias=2.0, a=0.0, b=1.0, c=3.0)
    found = [c.score for c in labelling.score(JUDGED, [prompt()] * 3, rows, Tools(policy=model))]
    beats = lambda gap: (sigmoid(gap + 2) + sigmoid(gap - 2)) / 2  # noqa: E731
    exact = [(beats(-1) + beats(-3)) / 2, (beats(1) + beats(-2)) / 2, (beats(3) + beats(2)) / 2]
    assert found == pytest.approx(exact, abs=1e-5)
    assert sum(found) == pytest.approx(1.5)


# ---------------------------------------------------------------------------------------------------- comparisons


def test_compare_mixes_rewards_and_judges_by_weight():
    """Length 1 against 1/2 at temperature 0.5 says sigmoid(1); a judge of weight 3 says 1/2: (sigmoid(1) + 1.5) / 4."""
    panel = Panel(rewards={"length": {"low": 2}}, judges={"self_pairwise": {"weight": 3}}, temperature=0.5)
    opinion = Opinion(**{"a b": 0.0, "a": 0.0})
    assert ask_both(opinion, "a b", "a", panel) == pytest.approx((sigmoid(1) + 1.5) / 4)


def test_compare_is_a_half_where_nobody_has_a_say():
    assert labelling.compare(Panel(rewards={"exact": {}}), [prompt()], [candidate("a")], [candidate("b")], Tools()) == [
        0.5
    ]


def test_a_pure_bias_to_the_place_cancels():
    assert ask_both(Opinion(bias=3.0, a=0.0, b=0.0), "a", "b") == pytest.approx(0.5, abs=1e-6)
    assert ask_both(Opinion(bias=0.0, a=1.0, b=0.0), "a", "b") == pytest.approx(sigmoid(1), abs=1e-5)


def test_a_letter_shared_by_both_spellings_does_not_blur_the_verdict():
    """A byte tokenizer has one first token for " A" and " B"; its mass says nothing."""

    class Bytes(Opinion):
        def next_token_logits(self, prompts, words):
            return torch.tensor([[-0.1 if " " in word else -3.0 if "A" in word else -5.0 for word in words]])

    (p,) = labelling.seats(JUDGED, "judge")[0].call(Tools(policy=Bytes()))(
        [prompt()], [candidate("a")], [candidate("b")]
    )
    assert p == pytest.approx(sigmoid(2))


def test_the_judge_is_shown_the_end_of_the_dialogue_and_the_start_of_each_answer():
    class Reader(Opinion):
        def next_token_logits(self, prompts, words):
            self.read = prompts[0].messages[0].content
            return torch.zeros(1, len(words))

    model, asked = Reader(), prompt(text="old question 12345")
    panel = Panel(judges={"self_pairwise": {"max_chars": 5, "criterion": "kinder"}})
    (seat,) = labelling.seats(panel, "judge")
    assert seat.call(Tools(policy=model))([asked], [candidate("abcdefg")], [candidate(" ")]) == [0.5]
    shown = "Question:\n12345\n\nAnswer A:\nabcde\n\nAnswer B:\n(no answer)\n\nWhich answer is kinder?"
    assert shown in model.read


# ---------------------------------------------------------------------------------------------------- preferences


def test_make_pair_by_hand():
    """Scores 1, 0, 0 at temperature 1: the winner's rate is (1/2 + 2 * 0.7311) / 3, a loser's (0.2689 + 2 / 2) / 3."""
    rows = [
        candidate(text, i, score=s, tokens=(i,)) for i, (text, s) in enumerate([("a", 1.0), ("b", 0.0), ("c", 0.0)])
    ]
    made = make_pair(prompt(), rows[0], rows[2], rows, 1.0)
    assert (made.id, made.margin, made.prob) == ("p/0-2", 1.0, pytest.approx(0.731059, abs=1e-6))
    assert made.chosen_rate == pytest.approx((0.5 + 2 * 0.731059) / 3, abs=1e-6)
    assert made.rejected_rate == pytest.approx((0.268941 + 1) / 3, abs=1e-6)
    assert (made.chosen.tokens, made.rejected.tokens) == ((0,), (2,))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.01, 2))
def test_rates_lie_in_their_bounds_and_average_to_a_half(scores, temperature):
    rows = [candidate(str(i), i, score=s) for i, s in enumerate(scores)]
    made = [make_pair(prompt(), row, rows[0], rows, temperature) for row in rows]
    k = len(rows)
    assert all(1 / (2 * k) - 1e-9 <= pair.chosen_rate <= 1 - 1 / (2 * k) + 1e-9 for pair in made)
    assert sum(pair.chosen_rate for pair in made) / k == pytest.approx(0.5)


def test_ordered_leaves_out_ties_copies_and_blanks():
    told = [("a", 0.3), ("b", 0.1 + 0.2), ("c", 0.0), ("c", 0.9), ("", 0.0), ("d", None)]
    rows = [candidate(text, i, score=score) for i, (text, score) in enumerate(told)]
    assert [(winner.id, loser.id) for winner, loser in ordered(rows)] == [
        ("p/0", "p/2"), ("p/1", "p/2"), ("p/3", "p/0"), ("p/3", "p/1"),
    ]  # fmt: skip


def rejudged(opinion: Opinion, panel: Panel) -> tuple[Pair, Pair]:
    rows = [candidate("a", 0, score=0.6), candidate("b", 1, score=0.4)]
    pair = make_pair(prompt(), *rows, rows, 0.1)
    return pair, rejudge(panel, {"p": prompt()}, [pair], Tools(policy=opinion))[0]


def test_a_judge_that_agrees_moves_the_probability_only():
    panel = Panel(rewards={"length": {}}, judges={"self_pairwise": {"weight": 1}})
    before, after = rejudged(Opinion(a=1.0, b=0.0), panel)
    assert after.prob == pytest.approx((sigmoid(2) + sigmoid(1)) / 2, abs=1e-5)
    assert after == before.model_copy(update={"prob": after.prob})


def test_a_judge_that_outweighs_the_rewards_turns_the_pair_round():
    panel = Panel(rewards={"length": {}}, judges={"self_pairwise": {"weight": 3}})
    before, after = rejudged(Opinion(a=-2.0, b=2.0), panel)
    assert after.prob == pytest.approx(1 - (sigmoid(2) + 3 * sigmoid(-4)) / 4, abs=1e-5)
    assert (after.chosen, after.rejected) == (before.rejected, before.chosen)
    assert after.margin == after.chosen.score - after.rejected.score == pytest.approx(-0.2)
    assert (after.chosen_rate, after.rejected_rate) == (before.rejected_rate, before.chosen_rate)
    assert after.id == before.id


def test_rejudge_records_what_was_said_in_both_orders():
    rows = [candidate("a", 0, score=0.6), candidate("b", 1, score=0.4)]
    orders: dict = {}
    pair = make_pair(prompt(), *rows, rows, 0.1)
    rejudge(JUDGED, {"p": prompt()}, [pair], Tools(policy=Opinion(bias=1.0, a=0.0, b=0.0)), orders=orders)
    assert orders["self_pairwise"] == [(pytest.approx(sigmoid(1)), pytest.approx(sigmoid(-1)))]


def test_every_labelled_record_can_be_written_and_read_back():
    prompts, candidates = batch()
    panel = Panel(rewards={"relevance": {}, "length": {}, "reward_model": {}}, judges={"self_pairwise": {}})
    scored = labelling.score(panel, prompts, candidates, tools())
    pairs = [make_pair(prompts[0], *two, scored, 0.1) for two in ordered(scored)[:5]]
    pairs = rejudge(panel, {"p": prompts[0]}, pairs, tools())
    for record in [*scored, *pairs]:
        assert type(record).model_validate_json(record.model_dump_json(exclude_defaults=True)) == record
