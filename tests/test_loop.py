"""The training loop on a tiny real policy: the same numbers however a step is cut, killed or padded."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from stages import cached, feed, loop
from stages.config import Training
from stages.optimize.objectives.dpo import dpo
from stages.policies import tiny
from stages.policies.text.policy import TextPolicy
from stages.records import Completion, Message, Pair


@dataclass
class Notes:
    """A journal's rows in memory and on disk, without MLflow."""

    metrics: Path
    rows: list = field(default_factory=list)

    def log(self, step, values):
        self.rows.append({"step": step, **values})
        self._write()

    def rewind(self, step):
        self.rows = [row for row in self.rows if row["step"] <= step]
        self._write()

    def _write(self):
        self.metrics.write_text("".join(json.dumps(row) + "\n" for row in self.rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.language_model(made)
    return made


def pairs(count: int) -> list[Pair]:
    return [
        Pair(
            id=f"p{i}/0-1",
            messages=(Message(role="user", content=f"Question {i} " + "very " * (i % 4)),),
            chosen=Completion(text="good answer " * (1 + i % 3)),
            rejected=Completion(text="bad " * (1 + i % 5), finished=i % 2 == 0),
        )
        for i in range(count)
    ]


def train(folder: Path, scratch: Path, stop_after: int | None = None, **settings) -> tuple[TextPolicy, list[dict]]:
    """Train on eight pairs by DPO; `stop_after` kills the loop once that many steps are logged."""
    scratch.mkdir(parents=True, exist_ok=True)
    policy = TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)
    data = pairs(8)
    kept = scratch / "reference.safetensors"
    if not kept.exists():
        feed.reference(TextPolicy.load(folder), [item for pair in data for item in feed.items(pair)]).save(kept, {})
    cache = cached.Cache.load(kept, {})
    notes = Notes(scratch / "metrics.jsonl")
    if notes.metrics.exists():
        notes.rows = [json.loads(line) for line in notes.metrics.read_text().splitlines()]
    plain = notes.log

    def log(step, values):
        plain(step, values)
        if step == stop_after:
            raise KeyboardInterrupt

    notes.log = log
    given = {"num_train_epochs": 3, "learning_rate": 1e-2, "save_steps": 2, **settings}
    loop.train(
        policy,
        data,
        lambda batch, epoch: dpo(feed.batch(policy, batch, ("reference",), cache, draw=epoch)),
        Training(**given),
        seed=4,
        scratch=scratch,
        journal=notes,
        size=lambda pair: feed.items(pair)[0].size,
        label="test",
    )
    return policy, notes.rows


def weights(policy: TextPolicy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.parameters().items()}


def test_a_step_is_the_same_in_one_forward_pass_or_in_many(folder, tmp_path):
    whole, one = train(folder, tmp_path / "a", per_device_train_batch_size=8)
    cut, many = train(folder, tmp_path / "b", per_device_train_batch_size=1, gradient_accumulation_steps=8)
    for a, b in zip(one, many, strict=True):
        for name in set(a) - (
            {"rewards/accuracies"} if a["step"] == 1 else set()
        ):  # at the reference, rounding decides
            assert a[name] == pytest.approx(b[name], rel=1e-3, abs=2e-4), name
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(cut)[name], atol=2e-3), name


@pytest.mark.parametrize("killed_after", [1, 3, 4])
def test_a_killed_run_ends_with_the_same_bits(folder, tmp_path, killed_after):
    settings = {"per_device_train_batch_size": 4}
    whole, rows = train(folder, tmp_path / "a", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "b", stop_after=killed_after, **settings)
    resumed, again = train(folder, tmp_path / "b", **settings)
    assert again == rows
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_training_raises_the_margin_from_log_two(folder, tmp_path):
    _, rows = train(folder, tmp_path, per_device_train_batch_size=8, num_train_epochs=8)
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert rows[-1]["loss"] < 0.6
    assert rows[-1]["rewards/margins"] > 0.2
    assert rows[-1]["rewards/accuracies"] == 1.0


def test_every_epoch_sees_every_example_once_in_its_own_order(folder, tmp_path):
    seen: list[str] = []
    policy = TextPolicy.load(folder, trainable=True, lora_r=2)
    weight = next(iter(policy.parameters().values()))

    def loss(batch, epoch):
        seen.extend(pair.id for pair in batch)
        return weight.sum() * torch.zeros(len(batch)), {}

    settings = Training(num_train_epochs=2, per_device_train_batch_size=3)
    notes = Notes(tmp_path / "metrics.jsonl")
    loop.train(
        policy, pairs(8), loss, settings, seed=0, scratch=tmp_path, journal=notes, size=lambda p: 1, label="test"
    )
    first, second = seen[:8], seen[8:]
    assert sorted(first) == sorted(second) == sorted(pair.id for pair in pairs(8))
    assert first != second


def test_the_learning_rate_warms_up_and_falls():
    settings = Training(warmup_ratio=0.2, lr_scheduler_type="linear")
    rates = [loop.rate(step, 10, settings) for step in range(10)]
    assert rates[:2] == [0.5, 1.0]
    assert rates[2] == 1.0
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 8)
    assert {loop.rate(s, 10, Training(lr_scheduler_type="constant", warmup_ratio=0)) for s in range(10)} == {1.0}


class Two:
    """Two numbers to train: no loss reaches the second in the first epoch."""

    def __init__(self) -> None:
        self.both = {name: torch.nn.Parameter(torch.ones(1)) for name in ("first", "second")}

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.both


def descend(scratch: Path, stop_after: int | None = None, *, loss=None, **given) -> tuple[Two, list[dict], dict]:
    """Twelve examples in steps of two, by default with a loss that leaves the second number alone at first."""
    scratch.mkdir(parents=True, exist_ok=True)
    notes, two = Notes(scratch / "metrics.jsonl"), Two()
    if notes.metrics.exists():
        notes.rows = [json.loads(line) for line in notes.metrics.read_text().splitlines()]
    plain = notes.log

    def log(step, values):
        plain(step, values)
        if step == stop_after:
            raise KeyboardInterrupt

    notes.log = log

    def square(batch, epoch):
        seen = [two.both["first"]] + [two.both["second"]] * (epoch > 0)
        return sum(p.square() for p in seen).expand(len(batch)), {}

    settings = Training(
        **{"num_train_epochs": 2, "per_device_train_batch_size": 2, "learning_rate": 0.1, "save_steps": 1}
    )
    summary = loop.train(
        two,
        list(range(12)),
        loss or square,
        settings,
        seed=0,
        scratch=scratch,
        journal=notes,
        size=lambda _: 0,
        label="test",
        **given,
    )
    return two, notes.rows, summary


@pytest.mark.parametrize("killed_after", [2, 6, 8])
def test_a_weight_that_no_loss_has_reached_yet_survives_a_kill(tmp_path, killed_after):
    whole, rows, _ = descend(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        descend(tmp_path / "b", stop_after=killed_after)
    resumed, again, _ = descend(tmp_path / "b")
    assert again == rows
    assert all(torch.equal(resumed.both[name], value) for name, value in whole.both.items())
    assert whole.both["second"].item() < 1


def test_repeated_steps_use_the_same_examples_and_each_is_announced_whole(tmp_path):
    announced: list[tuple] = []
    seen: list[list[int]] = []
    weight = torch.nn.Parameter(torch.ones(1))

    def loss(batch, epoch):
        seen.append(list(batch))
        return weight.square().expand(len(batch)), {}

    descend(tmp_path, loss=loss, repeats=2, begin=lambda batch, epoch: announced.append((epoch, tuple(batch))))
    assert len(announced) == 24
    assert announced[::2] == announced[1::2]
    assert [list(batch) for _, batch in announced] == seen
    assert sorted(i for epoch, batch in announced[::2] if epoch == 1 for i in batch) == list(range(12))


def test_training_ends_where_the_watch_says_so_and_again_after_a_kill(tmp_path):
    told: list[tuple[int, bool]] = []

    def watch(step: int, last: bool) -> dict[str, float]:
        told.append((step, last))
        return {"watch/stop": 1.0} if step == 4 else {}

    _, rows, _ = descend(tmp_path, watch=watch)
    assert told == [(step, False) for step in range(5)]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    descend(tmp_path, watch=watch)  # killed before the policy was published
    assert told[5:] == [(4, False)], "the step that ended training is taken again, and no further one"
    told.clear()
    descend(tmp_path / "whole", watch=lambda step, last: told.append((step, last)) or {})
    assert told == [(step, step == 12) for step in range(13)]


def test_a_loss_that_is_not_finite_is_left_out_of_the_summary(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0, "kl": 1.0}, {"step": 3, "loss": None, "kl": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert loop.tail(file, 2) == {"loss": 3.0, "kl": 1.0}
