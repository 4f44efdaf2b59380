"""Learning from labelled pairs and the policy's own samples at once, on a tiny real policy."""

import json
from pathlib import Path

import pytest
import torch

from stages import cached, feed, learn, online
from stages.config import Choice, Run
from stages.errors import UserError
from stages.learn import Optimize
from stages.online import Online
from stages.optimize.run import Settings, check
from stages.pairs import completion
from stages.panel import Tools
from stages.policies import tiny
from stages.policies.text.policy import TextPolicy
from stages.records import Pair, Prompt
from stages.updates import HybridUpdates
from tests.test_loop import Notes, pairs, weights
from tests.test_online import Kept

PAIRS = pairs(4)
ASKED = {"num_generations": 3, "sampler": {"max_new_tokens": 6}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.language_model(made)
    return made


def configured(lambda_kl: float = 0.1, **settings) -> Optimize:
    given = {
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "num_train_epochs": 2,
        **settings,
    }
    return Optimize(objective=Choice(name="hypo", lambda_kl=lambda_kl), online=Online(**ASKED), **given)


def priced(folder: Path) -> cached.Cache:
    return feed.reference(TextPolicy.load(folder), [item for pair in PAIRS for item in feed.items(pair)])


def learned(
    folder: Path, scratch: Path, settings: Optimize, *, reference: bool = True, stop_after: int | None = None
) -> tuple[TextPolicy, list[dict]]:
    scratch.mkdir(exist_ok=True)
    policy = TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)
    notes = Kept(scratch / "metrics.jsonl", stop_after)
    twin = TextPolicy.load(folder) if reference else None
    given = {"run": Run(seed=4), "scratch": scratch, "journal": notes, "cache": priced(folder)}
    online.learn(policy, twin, PAIRS, settings, Tools(), **given)
    return policy, notes.rows


def gradient(folder: Path, at_once: int) -> dict[str, torch.Tensor]:
    """Of a step on all pairs, so many a forward pass, of a policy that has left the reference."""
    policy = TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)
    for name, p in policy.parameters().items():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name)))
    settings = configured(per_device_train_batch_size=at_once)
    updates = HybridUpdates(policy, TextPolicy.load(folder), settings, priced(folder), seed=4)
    updates.begin(PAIRS, 0)
    for start in range(0, len(PAIRS), at_once):
        losses, _ = updates.loss(PAIRS[start : start + at_once], 0)
        (losses.sum() / len(PAIRS)).backward()
    return {name: p.grad for name, p in policy.parameters().items()}


def test_it_starts_at_the_reference_and_leaves_it(folder, tmp_path):
    """The KL of step 1 is that of the reference from itself; the loss that of a coin, for the surrogate is 0."""
    policy, rows = learned(folder, tmp_path, configured())
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert rows[-1]["kl"] != pytest.approx(0.0, abs=1e-4)
    assert rows[-1]["rewards/margins"] > 0
    assert "reward" not in rows[0]


def test_without_its_kl_nothing_is_sampled_and_it_is_dpo_to_the_last_bit(folder, tmp_path):
    hybrid, _ = learned(folder, tmp_path / "a", configured(lambda_kl=0.0), reference=False)
    plain = TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)
    settings = configured().model_copy(update={"objective": Choice(name="dpo"), "online": None})
    notes = Notes(tmp_path / "metrics.jsonl")
    given = {"seed": 4, "scratch": tmp_path, "journal": notes, "label": "dpo"}
    learn.learn(plain, PAIRS, settings, priced(folder), **given)
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(hybrid)[name]), name


def test_a_price_on_the_kl_keeps_the_policy_closer(folder, tmp_path):
    far = learned(folder, tmp_path / "a", configured(lambda_kl=1e-6, num_train_epochs=8))[1]
    near = learned(folder, tmp_path / "b", configured(lambda_kl=1.0, num_train_epochs=8))[1]
    kl = [sum(row["kl"] for row in rows[-8:]) / 8 for rows in (far, near)]
    assert kl[1] < kl[0] / 2


def test_a_step_is_the_same_in_one_forward_pass_or_in_many(folder):
    whole, cut = gradient(folder, 4), gradient(folder, 1)
    assert sum(float(value.abs().sum()) for value in whole.values()) > 0
    for name, value in whole.items():
        torch.testing.assert_close(value, cut[name], rtol=1e-3, atol=1e-5)


def test_a_killed_run_ends_with_the_same_bits(folder, tmp_path):
    whole, rows = learned(folder, tmp_path / "a", configured())
    with pytest.raises(KeyboardInterrupt):
        learned(folder, tmp_path / "b", configured(), stop_after=3)
    again, resumed = learned(folder, tmp_path / "b", configured())
    assert rows == resumed
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


def test_samples_are_fresh_each_epoch_and_each_pair_has_its_own(folder):
    policy = TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)
    twins = [PAIRS[0], PAIRS[0].model_copy(update={"id": "p0/2-3"})]
    updates = HybridUpdates(policy, None, configured(), None, seed=4)
    said = []
    for epoch in (0, 1):
        updates.begin(twins, epoch)
        (samples,) = updates.held.values()
        assert [item.messages for item in samples.items] == [PAIRS[0].messages] * 6
        said += [tuple(item.completion.tokens for item in samples.items[i : i + 3]) for i in (0, 3)]
    assert len(set(said)) == 4


MISTAKES = [
    (None, "objective 'hypo' learns online; add `online: {num_generations: 4}`"),
    ({"rewards": {"length": {}}}, "optimize.online.rewards: objective 'hypo' samples anew each step and nobody"),
    ({"judges": {"self_pairwise": {}}}, "optimize.online.judges: objective 'hypo'"),
    ({"num_iterations": 2}, "optimize.online.num_iterations: objective 'hypo'"),
    ({"advantage": {"name": "leave_one_out"}}, "optimize.online.advantage: objective 'hypo'"),
    ({"ties": "drop"}, "optimize.online.ties: objective 'hypo'"),
    ({"ema_beta": 0.1}, "optimize.online.ema_beta: objective 'hypo'"),
    ({"sampler": {"steps": 3}}, "the family 'text' samples without 'steps'"),
]


@pytest.mark.parametrize(("asked", "says"), MISTAKES, ids=[says[-24:] for _, says in MISTAKES])
def test_mistakes_are_one_line_before_any_model_is_loaded(asked, says):
    node = {"optimize": {"objective": {"name": "hypo"}, **({} if asked is None else {"online": asked})}}
    with pytest.raises(UserError) as caught:
        check(Settings.model_validate(node))
    assert says in str(caught.value)


def test_neither_rewards_nor_judges_are_asked_for():
    settings = Settings.model_validate({"optimize": {"objective": {"name": "hypo"}, "online": ASKED}})
    assert settings.optimize.online is not None
    assert not settings.optimize.online.rewards
    assert not settings.optimize.online.judges
    check(settings)  # raises where it asks for any


# -------------------------------------------------------------------------------------------- offline behaviour


def test_completions_bring_the_log_probs_that_they_were_drawn_with(folder):
    policy = TextPolicy.load(folder)
    drawn = [drawn_from(policy, pair) for pair in PAIRS]
    batch = feed.batch(policy, drawn, ("behaviour",), None)
    for side in (batch.chosen, batch.rejected):
        torch.testing.assert_close(side.old[side.mask], side.logp[side.mask].detach(), rtol=1e-4, atol=1e-4)
        assert not side.old[~side.mask].any()
    assert feed.batch(policy, drawn, (), None).chosen.old is None
    with pytest.raises(UserError, match="preference 'p0/0-1:chosen': an answer without the log-probs"):
        feed.batch(policy, PAIRS, ("behaviour",), None)


def drawn_from(policy: TextPolicy, pair: Pair) -> Pair:
    """The pair with two answers of the policy itself."""
    two = policy.sample([Prompt(id="p", messages=pair.messages)], 2, seed=0, max_new_tokens=6)
    made = pair.model_copy(update={"chosen": completion(two[0]), "rejected": completion(two[1])})
    return Pair.model_validate(json.loads(made.model_dump_json(exclude_defaults=True)))
