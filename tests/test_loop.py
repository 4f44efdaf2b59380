"""The training loop on a tiny real policy: the same numbers however a step is cut, killed or padded."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from stages import feed, loop
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
    cache = feed.Cache.load(kept, {})
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
