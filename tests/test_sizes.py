"""How many preferences are learned from: a smaller number is part of a larger one, and of pairs made singles."""

from pathlib import Path

import pytest
import torch

from stages import feed, learn, parts
from stages.config import Run
from stages.errors import UserError
from stages.journal import Journal
from stages.learn import Optimize
from stages.policies import tiny
from stages.policies.text.policy import TextPolicy
from stages.records import Pair


def pairs(count: int) -> list[Pair]:
    return [
        Pair(
            id=f"p{p}",
            messages=({"role": "user", "content": f"Question {p}"},),
            chosen={"text": "good answer"},
            rejected={"text": "bad " * (1 + p)},
        )
        for p in range(count)
    ]


def test_a_smaller_set_is_part_of_a_larger_one() -> None:
    labelled = pairs(96)
    small, large = (learn.first(labelled, count) for count in (24, 72))
    assert small == large[:24] == labelled[:24]
    assert len(large) == 72
    assert learn.first(labelled, None) == labelled
    assert learn.first(labelled, 96) == labelled


@pytest.mark.parametrize("count", [1, 24, 96])
def test_pairs_split_into_as_many_good_answers_as_bad_ones(count: int) -> None:
    kto = parts.find("objective", "kto")
    singles = feed.examples(kto, learn.first(pairs(96), count), where="")
    good = [single for single in singles if single.label]
    assert len(good) == len(singles) - len(good) == count
    assert len({single.id for single in singles}) == 2 * count


def trained(model: Path, folder: Path, labelled: list[Pair], preferences: int | None) -> dict[str, torch.Tensor]:
    """Weights of a tiny policy after an epoch of DPO."""
    scratch = folder / f"{len(labelled)}-{preferences}"
    settings = Optimize(per_device_train_batch_size=2, learning_rate=1e-2, preferences=preferences)
    cache = feed.reference(TextPolicy.load(model), [item for pair in labelled for item in feed.items(pair)])
    policy = TextPolicy.load(model, trainable=True, lora_r=2, seed=0)
    with Journal("optimize", scratch / "journal", {}, {}, root=scratch / "outbox") as journal:
        learn.learn(policy, labelled, settings, cache, seed=4, scratch=scratch, journal=journal, label="test")
    return {name: weight.detach().clone() for name, weight in policy.parameters().items()}


def test_only_the_first_are_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    tiny.language_model(tmp_path / "model")
    asked = trained(tmp_path / "model", tmp_path, pairs(6), 4)
    alone = trained(tmp_path / "model", tmp_path, pairs(4), None)
    every = trained(tmp_path / "model", tmp_path, pairs(6), None)
    assert all(torch.equal(weight, alone[name]) for name, weight in asked.items())
    assert not all(torch.equal(weight, every[name]) for name, weight in asked.items())


def test_more_than_there_are_is_a_mistake() -> None:
    with pytest.raises(UserError, match="9 preferences are wanted, 8 can be learned from; lower it, or label more"):
        learn.first(pairs(8), 9)
    online = Optimize.model_validate({"objective": {"name": "rloo"}, "preferences": 8})
    with pytest.raises(UserError, match=r"optimize.preferences: objective 'rloo' learns online"):
        learn.check(online, Run(), offline=False)
