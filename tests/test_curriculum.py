"""Curricula: phases by difficulty, a reference that moves, and runs that are killed between or within phases."""

import json
import random
from pathlib import Path

import pytest
import torch

from stages import cached, feed, learn, loop
from stages.config import Choice, Run
from stages.errors import UserError
from stages.journal import Journal
from stages.label.pairings.best_against_rest import best_against_rest
from stages.learn import Optimize
from stages.optimize.curricula.easy_to_hard import easy_to_hard
from stages.policies import tiny
from stages.policies.text.policy import TextPolicy
from stages.records import Pair
from tests.label.world import candidate, prompt


def pairs(prompts: int = 4, of_each: int = 3) -> list[Pair]:
    """Pairs of each prompt, the last the easiest."""
    return [
        Pair(
            id=f"p{p}/0-{k}",
            messages=({"role": "user", "content": f"Question {p} " + "very " * p},),
            chosen={"text": "good answer"},
            rejected={"text": "bad " * (1 + k)},
            margin=0.1 + 0.2 * k + 0.01 * p,
        )
        for p in range(prompts)
        for k in range(of_each)
    ]


# ---------------------------------------------------------------------------------------------------- pairs, phases


def test_the_winner_is_the_best_and_its_rivals_are_all_others() -> None:
    scores = [0.4, 0.9, 0.0, 0.9, 0.6, None]
    made = best_against_rest(
        prompt(),
        [candidate("abcdef"[i], i, score=score) for i, score in enumerate(scores)],
        random.Random(0),
        temperature=0.1,
    )
    assert [(p.chosen.text, p.rejected.text) for p in made] == [("b", "a"), ("b", "c"), ("b", "e")]
    assert [p.margin for p in made] == pytest.approx([0.5, 0.9, 0.3])


def test_two_answers_make_the_pair_that_dpo_learns_from_and_one_phase() -> None:
    two = [candidate("a", 0, score=0.2), candidate("b", 1, score=0.7)]
    (pair,) = best_against_rest(prompt(), two, random.Random(0), temperature=0.1)
    assert (pair.chosen.text, pair.rejected.text) == ("b", "a")
    assert easy_to_hard(pairs(of_each=1)) == [[0, 1, 2, 3]]


def test_every_prompt_gives_its_easiest_pair_first() -> None:
    """Three pairs a prompt in three phases: the pairs 2 of all prompts, then the pairs 1, then the pairs 0."""
    assert easy_to_hard(pairs()) == [[2, 5, 8, 11], [1, 4, 7, 10], [0, 3, 6, 9]]


@pytest.mark.parametrize("of_each", [1, 2, 4, 7])
@pytest.mark.parametrize("phases", [1, 2, 3, 5])
def test_a_prompts_gaps_never_widen_from_phase_to_phase(of_each: int, phases: int) -> None:
    made = pairs(of_each=of_each)
    found = easy_to_hard(made, phases=phases)
    assert len(found) == min(of_each, phases)
    for earlier, later in zip(found, found[1:]):
        for p in range(4):
            gaps = [[made[i].margin for i in phase if made[i].id.startswith(f"p{p}/")] for phase in (earlier, later)]
            assert min(gaps[0]) >= max(gaps[1])


def test_all_pairs_together_are_cut_into_thirds() -> None:
    made = pairs(prompts=5, of_each=2)
    found = easy_to_hard(made, scope="all")
    assert [len(phase) for phase in found] == [4, 3, 3]
    margins = [[made[i].margin for i in phase] for phase in found]
    assert min(margins[0]) >= max(margins[1])
    assert min(margins[1]) >= max(margins[2])


def test_without_margins_nothing_is_easy_or_hard() -> None:
    alike = [pair.model_copy(update={"margin": 0.0}) for pair in pairs()]
    with pytest.raises(UserError, match="no pair has a margin; drop the curriculum"):
        easy_to_hard(alike)


# ---------------------------------------------------------------------------------------------------- training

CURRICULUM = Choice(name="easy_to_hard")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.language_model(made)
    return made


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")


def train(folder: Path, scratch: Path, *, stop_after: int | None = None, watch=None, data=None, **given):
    """Train by DPO in steps of two pairs, killed after a step; the policy and its rows."""
    data = pairs() if data is None else data
    scratch.mkdir(parents=True, exist_ok=True)
    kept = scratch / "first.safetensors"
    if not kept.exists():
        feed.reference(TextPolicy.load(folder), [i for pair in data for i in feed.items(pair)]).save(kept, {})
    settings = Optimize(
        **{"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 2, **given}
    )

    def look(step: int, last: bool) -> dict[str, float]:
        if step == stop_after:
            raise KeyboardInterrupt
        return watch(step, last) if watch else {}

    policy = TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)
    with Journal("optimize", scratch / "journal", {}, {}, root=scratch / "outbox") as journal:
        learn.learn(
            policy,
            data,
            settings,
            cached.Cache.load(kept, {}),
            seed=4,
            scratch=scratch,
            journal=journal,
            label="test",
            watch=look,
        )
    return policy, [json.loads(line) for line in journal.metrics.read_text().splitlines()]


def weights(policy: TextPolicy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.parameters().items()}


def test_phases_follow_one_another_and_each_begins_anew(folder, tmp_path) -> None:
    _, rows = train(folder, tmp_path / "a", curriculum=CURRICULUM, moving_reference=True)
    assert [row["step"] for row in rows] == list(range(1, 13)), "three phases of four pairs, twice in pairs of two"
    rates = [row["learning_rate"] for row in rows]
    assert rates[:4] == rates[4:8] == rates[8:], "the schedule begins anew"
    for n in (0, 4, 8):
        assert rows[n]["loss"] == pytest.approx(0.693147, abs=1e-5), (
            "the reference is the policy that the phase starts from"
        )
    assert all(abs(row["loss"] - 0.693147) > 1e-3 for n, row in enumerate(rows) if n % 4)


def test_a_reference_that_stays_is_left_behind(folder, tmp_path) -> None:
    _, rows = train(folder, tmp_path / "a", curriculum=CURRICULUM)
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert all(abs(rows[n]["loss"] - 0.693147) > 1e-2 for n in (4, 8))


@pytest.mark.parametrize("moving", [False, True])
def test_one_phase_with_all_pairs_is_pooled_dpo(folder, tmp_path, moving) -> None:
    pooled, rows = train(folder, tmp_path / "a")
    curriculum = Choice(name="easy_to_hard", phases=1)
    one, again = train(folder, tmp_path / "b", curriculum=curriculum, moving_reference=moving)
    assert again == rows
    assert all(torch.equal(value, weights(one)[name]) for name, value in weights(pooled).items())


@pytest.mark.parametrize("killed_at", [1, 3, 4, 5, 6, 8, 11, 12])
def test_a_killed_run_ends_with_the_same_bits(folder, tmp_path, killed_at) -> None:
    """Killed in a phase before and after its checkpoint, and between two phases: the reference is not priced anew."""
    given = {"curriculum": CURRICULUM, "moving_reference": True, "save_steps": 3}
    whole, rows = train(folder, tmp_path / "a", **given)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "b", stop_after=killed_at, **given)
    resumed, again = train(folder, tmp_path / "b", **given)
    assert again == rows
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


def test_whoever_watches_counts_on_and_may_end_it_all(folder, tmp_path) -> None:
    told: list[tuple[int, bool]] = []

    def watch(step: int, last: bool) -> dict[str, float]:
        told.append((step, last))
        return {"watch/stop": 1.0} if step == 6 else {}

    _, rows = train(folder, tmp_path / "a", curriculum=CURRICULUM, watch=watch)
    assert told == [(step, step == 4) for step in range(7)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6], "no phase follows"


def test_the_steps_of_training_are_known_before(folder, tmp_path) -> None:
    _, rows = train(folder, tmp_path / "a", data=pairs(prompts=3, of_each=3), gradient_accumulation_steps=2)
    settings = Optimize(num_train_epochs=2, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert loop.length(9, settings) == len(rows) == 6


MISTAKES = [
    ({"curriculum": {"name": "easy"}}, "optimize.curriculum.name: no curriculum is called 'easy'"),
    ({"curriculum": {"name": "easy_to_hard", "phases": 0}}, "phases = 0: Input should be greater than or equal to 1"),
    ({"curriculum": {"name": "easy_to_hard"}, "objective": {"name": "kto"}}, "a curriculum orders pairs, objective"),
    ({"curriculum": {"name": "easy_to_hard"}, "objective": {"name": "grpo"}}, "a curriculum orders pairs, objective"),
    ({"moving_reference": True}, "optimize.moving_reference: there are no phases; add a curriculum"),
    (
        {"curriculum": {"name": "easy_to_hard"}, "moving_reference": True, "objective": {"name": "simpo"}},
        "optimize.moving_reference: objective 'simpo' has no reference; remove it",
    ),
]


@pytest.mark.parametrize(("node", "says"), MISTAKES, ids=[says[:30] for _, says in MISTAKES])
def test_mistakes_are_one_line_before_any_model_is_loaded(node, says) -> None:
    with pytest.raises(UserError) as caught:
        learn.check(Optimize.model_validate(node), Run(), offline=False)
    assert says in str(caught.value)
