"""Diagnosing a training run by preferences: what is measured, what is held out, and how an alarm ends it."""

import json
from pathlib import Path

import pytest
import torch

from stages import cached, diagnose, feed, learn
from stages.config import Choice, Run
from stages.diagnose import Diagnose
from stages.errors import UserError
from stages.journal import Journal
from stages.learn import Optimize
from stages.policies import tiny
from stages.policies.text.policy import TextPolicy
from stages.records import Pair, Ranking, Single

EVERY = {"steps": 2, "prompts": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.language_model(made)
    return made


def pairs(prompts: int = 8, chosen: str = "good answer ") -> list[Pair]:
    return [
        Pair(
            id=f"p{p}/0-{k}",
            messages=({"role": "user", "content": f"Question {p} " + "very " * (p % 3)},),
            chosen={"text": chosen * (1 + p % 2)},
            rejected={"text": "bad " * (4 + k)},
            margin=0.1 + k,
        )
        for p in range(prompts)
        for k in range(2)
    ]


class Killed(Journal):
    """A journal whose process dies once a step is logged."""

    at: int | None = None

    def log(self, step, values):
        super().log(step, values)
        if step == self.at:
            raise KeyboardInterrupt


def train(
    folder: Path, scratch: Path, *, kill: int | None = None, asked=EVERY, data=None, seen: dict | None = None, **given
):
    """Train by DPO, four pairs a step, four steps an epoch; the policy, its rows and the journal."""
    data = data or pairs()
    scratch.mkdir(parents=True, exist_ok=True)
    kept = scratch / "first.safetensors"
    if not kept.exists():
        feed.reference(TextPolicy.load(folder), [i for pair in data for i in feed.items(pair)]).save(kept, {})
    settings = Optimize(
        **{"per_device_train_batch_size": 4, "learning_rate": 1e-2, "num_train_epochs": 2, "save_steps": 3, **given},
        diagnose=None if asked is None else Diagnose(**asked),
    )
    policy = TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)

    def note(step: int, last: bool) -> dict[str, float]:
        if seen is not None:
            seen[step] = weights(policy)
        return {}

    about = {"seed": 4, "scratch": scratch, "label": "test", "watch": note}
    with Killed("optimize", scratch / "journal", {}, {}, root=scratch / "outbox") as journal:
        journal.at = kill
        learn.learn(policy, data, settings, cached.Cache.load(kept, {}), journal=journal, **about)
    return policy, [json.loads(line) for line in journal.metrics.read_text().splitlines()], journal


def weights(policy: TextPolicy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.parameters().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def told(row: dict) -> dict[str, float]:
    return {name: value for name, value in row.items() if name.startswith(("diagnose/", "alarm/"))}


def test_looks_measure_what_they_say(folder, client) -> None:
    policy, rows, _ = train(folder, Path("a"))
    assert [row["step"] for row in rows if told(row)] == [2, 4, 6, 8]
    better, worse = diagnose.sides(pairs(), 3)
    assert [item.id for item in better] == ["p0/0-0:chosen", "p2/0-0:chosen", "p5/0-0:chosen"]
    means = []
    for items in (better, worse):
        with torch.no_grad():
            steps = [policy.log_probs([item], top_k=10) for item in items]
        means.append(sum(float(s.logp.mean()) for s in steps) / 3)
        if items is better:
            top = [s.top[0] for s in steps]
    found = told(rows[-1])
    assert found["diagnose/better"] == pytest.approx(means[0], abs=1e-5)
    assert found["diagnose/worse"] == pytest.approx(means[1], abs=1e-5)
    assert found["diagnose/gap"] == pytest.approx(means[0] - means[1], abs=1e-5)
    assert found["diagnose/mass"] == pytest.approx(sum(float(t.sum(-1).mean()) for t in top) / 3, abs=1e-5)
    share = [t / t.sum(-1, keepdim=True) for t in top]
    bits = sum(float(-(p * p.log2()).sum(-1).mean()) for p in share) / 3
    assert found["diagnose/entropy"] == pytest.approx(bits, abs=1e-5)
    start = json.loads(Path("a/diagnosed.json").read_text())[0]
    assert start["step"] == 0
    assert found["diagnose/drift"] == pytest.approx(found["diagnose/better"] - start["better"])


def test_every_step_tells_the_log_prob_of_a_token_the_gap_and_the_drift(folder, client) -> None:
    _, rows, _ = train(folder, Path("a"), asked=None)
    assert not any(told(row) for row in rows)
    assert rows[0]["logps/drift"] == pytest.approx(0.0, abs=1e-5), "at step 0 the policy is its reference"
    assert rows[-1]["logps/gap"] > rows[0]["logps/gap"]
    assert all(row["logps/chosen_token"] < 0 for row in rows)


def test_looking_changes_nothing(folder, client) -> None:
    blind, rows, _ = train(folder, Path("a"), asked=None)
    watched, again, _ = train(folder, Path("b"), asked={**EVERY, "sample": True, "sampler": {"max_new_tokens": 6}})
    assert [{k: v for k, v in row.items() if k not in told(row)} for row in again] == rows
    assert equal(weights(blind), weights(watched))
    assert {"diagnose/own_entropy", "diagnose/own_mass"} <= set(told(again[-1]))


def test_what_is_held_out_is_not_learned_from() -> None:
    data = pairs()
    out = {item.messages for item in diagnose.sides(data, 3)[0]}
    left = diagnose.learned(data, Diagnose(prompts=3, held_out=True))
    assert [p.id for p in left] == [p.id for p in data if p.messages not in out]
    assert len(left) == 10
    assert diagnose.learned(data, Diagnose(prompts=3)) == diagnose.learned(data, None) == data
    with pytest.raises(UserError, match="all 8 prompts are held out; hold out fewer"):
        diagnose.learned(data, Diagnose(prompts=9, held_out=True))


def test_training_leaves_the_held_out_alone(folder, client) -> None:
    _, rows, _ = train(folder, Path("a"), asked={"prompts": 4, "held_out": True}, num_train_epochs=1)
    assert len(rows) == 2, "eight of sixteen pairs, four a step"


def test_the_better_and_the_worse_of_every_kind_of_preference() -> None:
    asked = ({"role": "user", "content": "?"},)
    three = Ranking(id="r", messages=asked, completions=tuple({"text": t, "score": 1.0} for t in "abc"))
    better, worse = diagnose.sides([three], 8)
    assert [item.completion.text for item in (*better, *worse)] == ["a", "c"]
    labels = {"a": False, "b": True, "c": None, "d": True, "e": False}
    singles = [Single(id=t, messages=asked, completion={"text": t}, label=label) for t, label in labels.items()]
    better, worse = diagnose.sides(singles, 8)
    assert [item.completion.text for item in (*better, *worse)] == ["b", "a"]
    assert diagnose.sides(singles[:1], 8) == ([], []), "nothing desirable to look at"


def drifting(**asked) -> dict:
    """Answers that share their words: what the longer, rejected ones lose the chosen lose with them."""
    return {"data": pairs(chosen="bad "), "asked": {**EVERY, "max_drift": 0.7, **asked}, "learning_rate": 5e-3}


def test_an_alarm_is_told_once_and_logged_from_then_on(folder, client, capsys) -> None:
    _, rows, journal = train(folder, Path("a"), **drifting())
    flags = {row["step"]: row["alarm/chosen_drift"] for row in rows if told(row)}
    at = next(step for step, flag in flags.items() if flag)
    assert all(flag == (step >= at) for step, flag in flags.items())
    said = [line for line in capsys.readouterr().out.splitlines() if "chosen answers" in line]
    assert len(said) == 1
    assert said[0].startswith(f"alarm at step {at}: the chosen answers have lost")
    tags = client.get_run(journal.run_id).data.tags
    assert tags["prefloop.alarm.chosen_drift"] == said[0].removeprefix("alarm at ")
    assert client.get_run(journal.run_id).info.status == "FINISHED"
    assert len(rows) == 8, "an alarm alone ends nothing"


def test_an_alarm_may_end_training_with_the_last_healthy_weights(folder, client, capsys) -> None:
    _, whole, _ = train(folder, Path("a"), **drifting())
    at = next(row["step"] for row in whole if row.get("alarm/chosen_drift"))
    seen: dict[int, dict] = {}
    policy, rows, _ = train(folder, Path("b"), seen=seen, **drifting(stop=True))
    assert [row["step"] for row in rows] == list(range(1, at + 1))
    assert rows[-1]["watch/stop"] == 1.0
    assert equal(weights(policy), seen[at - 2])
    assert f"stopped at step {at} with the weights of step {at - 2}" in capsys.readouterr().out


@pytest.mark.parametrize("kill", [1, 3, 5, 7])
def test_a_killed_run_sees_the_same(folder, client, kill) -> None:
    whole, rows, _ = train(folder, Path("a"))
    with pytest.raises(KeyboardInterrupt):
        train(folder, Path("b"), kill=kill)
    resumed, again, _ = train(folder, Path("b"))
    assert again == rows
    assert equal(weights(whole), weights(resumed))
    assert Path("a/diagnosed.json").read_bytes() == Path("b/diagnosed.json").read_bytes()


def test_a_run_killed_after_the_alarm_ended_it_ends_there_again(folder, client) -> None:
    once, rows, _ = train(folder, Path("a"), **drifting(stop=True))
    twice, again, _ = train(folder, Path("a"), **drifting(stop=True))
    assert again == rows
    assert equal(weights(once), weights(twice))


def test_phases_share_one_history(folder, client) -> None:
    given = {"curriculum": Choice(name="easy_to_hard", phases=2), "moving_reference": True}
    _, rows, _ = train(folder, Path("a"), **given)
    assert [row["step"] for row in rows if told(row)] == [2, 4, 6, 8]
    assert [one["step"] for one in json.loads(Path("a/diagnosed.json").read_text())] == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("node", "says"),
    [
        ({"sampler": {"max_new_token": 3}, "sample": True}, "optimize.diagnose.sampler: the family 'text' samples"),
        ({"sampler": {"max_new_tokens": 3}}, "optimize.diagnose.sampler: no samples are drawn; remove it"),
    ],
)
def test_mistakes_are_one_line_before_any_model_is_loaded(node, says) -> None:
    with pytest.raises(UserError) as caught:
        learn.check(Optimize.model_validate({"diagnose": node}), Run())
    assert says in str(caught.value)
