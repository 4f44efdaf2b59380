"""Rounds that learn from what came with the prompts: whose samples lose, and what is refused."""

import pytest

from stages.config import Choice
from stages.errors import UserError
from stages.learn import Optimize
from stages.records import Candidate, Completion, Pair, Prompt
from stages.selfplay import run

ASK = Prompt(
    id="p",
    messages=({"role": "user", "content": "2 + 2?"},),
    given=(Completion(text="5", score=0.1), Completion(text="4", score=0.9)),
)


def said(name: str, text: str) -> Candidate:
    return Candidate(id=name, prompt=name.partition("/")[0], text=text)


def settings(objective: str, **entry: str) -> run.Settings:
    rounds = {"r1": {"previous": "data/sft", **entry}}
    return run.Settings(
        optimize=Optimize(objective=Choice(name=objective)),
        selfplay=run.Selfplay(rounds=rounds, rewards={"length": {}}),
    )


def test_the_best_given_answer_beats_the_opponents_samples_and_not_the_policys():
    sampled = [said("p/0", "own"), said("p/o0", "theirs"), said("p/o1", "more"), said("q/o0", "another prompt's")]
    pairs = run.given_first(ASK, sampled)
    assert [(pair.id, pair.chosen.text, pair.rejected.text) for pair in pairs] == [
        ("p/given-o0", "4", "theirs"),
        ("p/given-o1", "4", "more"),
    ]
    assert all(isinstance(pair, Pair) and (pair.prob, pair.margin) == (1.0, 0.0) for pair in pairs)


def test_own_samples_lose_where_the_policy_plays_itself_save_blanks_and_copies():
    sampled = [said("p/0", "own"), said("p/1", " "), said("p/2", "4")]
    assert [pair.rejected.text for pair in run.given_first(ASK, sampled)] == ["own"]


def test_a_prompt_without_a_given_answer_is_refused():
    with pytest.raises(UserError, match="prompt p: came with no answer"):
        run.given_first(ASK.model_copy(update={"given": ()}), [said("p/0", "own")])


@pytest.mark.parametrize(("objective", "entry"), [("sppo", {"winners": "given"}), ("kto", {"reference": "opponent"})])
def test_an_objective_that_a_round_cannot_serve_is_refused(objective, entry):
    with pytest.raises(UserError, match=f"leaves objective '{objective}' without"):
        run.check("r1", settings(objective, **entry))
    run.check("r1", settings("dpo", **entry))


def test_the_opponent_is_drawn_from_the_policies_that_led_to_the_last_one(tmp_path):
    folders = [tmp_path / name for name in ("sft", "r1", "r2")]
    for folder, previous in zip(folders, [None, *folders]):
        folder.mkdir()
        if previous:
            (folder / "previous.json").write_text(f'{{"previous": "{previous}"}}')
    config = settings("dpo").selfplay
    drawn = {
        run.rival(config.model_copy(update={"opponent": Choice(name="random_checkpoint", seed=seed)}), folders[-1])
        for seed in range(20)
    }
    assert drawn == set(folders)
