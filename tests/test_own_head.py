"""An objective with a head of its own: it learns and resumes beside the policy, and nobody finds it in the policy."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stages import feed, files, learn, loop
from stages.learn import Optimize
from stages.policies import tiny
from stages.policies.text.policy import TextPolicy
from stages.records import Pair
from tests.test_loop import Notes

PAIRS = [
    Pair(
        id=f"p{i}",
        messages=({"role": "user", "content": f"Question {i}"},),
        chosen={"text": "the red house and a green tree or " + "an old boat " * (1 + i % 3)},
        rejected={"text": "bad " * (1 + i)},
    )
    for i in range(6)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny.language_model(folder)
    return folder


def train(model: Path, scratch: Path, objective: dict, *, killed_at: int = 0) -> tuple[TextPolicy, dict]:
    """Train on the pairs; gives the policy and what the last checkpoint holds."""
    scratch.mkdir(exist_ok=True)
    settings = Optimize(
        objective=objective, num_train_epochs=3, per_device_train_batch_size=2, learning_rate=1e-2, save_steps=2
    )
    cache = feed.reference(TextPolicy.load(model), [item for pair in PAIRS for item in feed.items(pair)])
    policy = TextPolicy.load(model, trainable=True, lora_r=2, seed=0)
    notes = Notes(scratch / "metrics.jsonl")

    def look(step: int, last: bool) -> dict[str, float]:
        if killed_at and step == killed_at:
            raise KeyboardInterrupt
        return {}

    about = {"seed": 4, "scratch": scratch, "journal": notes, "label": "test", "watch": look}
    learn.learn(policy, PAIRS, settings, cache, **about)
    return policy, files.load_tensors(scratch / loop.CHECKPOINT)[0]


def test_it_learns_beside_the_policy_and_resumes_with_the_same_bits(model: Path, tmp_path: Path) -> None:
    chosen = {"name": "spo_degree", "gamma": 0.5, "levels": 3}
    policy, whole = train(model, tmp_path / "a", chosen)
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path / "b", chosen, killed_at=6)
    _, resumed = train(model, tmp_path / "b", chosen)
    assert whole["weight/head/weight"].shape == (3, 32)
    assert whole["weight/head/weight"].abs().max() > 0.1
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    policy.save(tmp_path / "saved")
    again = TextPolicy.load(tmp_path / "saved")
    items = feed.items(PAIRS[0])
    torch.testing.assert_close(again.log_probs(items).logp, policy.log_probs(items).logp.detach(), rtol=0, atol=1e-4)
    assert len(load_file(tmp_path / "saved" / "adapter_model.safetensors")) == len(policy.parameters())


def test_its_first_step_is_ten_times_as_long(model: Path, tmp_path: Path) -> None:
    """AdamW's first step has the length of the rate in each coordinate that has a gradient."""
    head = {"bias": torch.zeros(2, requires_grad=True)}
    policy = TextPolicy.load(model, trainable=True, lora_r=2, seed=0)
    settings = Optimize(num_train_epochs=1, learning_rate=1e-3, lr_scheduler_type="constant", warmup_ratio=0.0)

    def loss(examples: list, epoch: int) -> tuple:
        return (head["bias"] * torch.tensor([5.0, 0.0])).sum()[None], {}

    loop.train(
        policy,
        [0],
        loss,
        settings,
        seed=0,
        scratch=tmp_path,
        journal=Notes(tmp_path / "metrics.jsonl"),
        size=int,
        label="test",
        head=head,
    )
    assert head["bias"].tolist() == pytest.approx([-1e-2, 0.0])


def test_without_weight_the_policy_is_that_of_dpo(model: Path, tmp_path: Path) -> None:
    ours, kept = train(model, tmp_path / "a", {"name": "spo_degree", "beta": 0.2, "gamma": 0.0})
    theirs, _ = train(model, tmp_path / "b", {"name": "dpo", "beta": 0.2})
    other, _ = train(model, tmp_path / "c", {"name": "spo_degree", "beta": 0.2, "gamma": 0.5})
    weights = [{name: p.detach() for name, p in policy.parameters().items()} for policy in (ours, theirs, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())
    assert (kept["weight/head/weight"] == 0).all()
