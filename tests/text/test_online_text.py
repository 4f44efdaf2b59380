"""GRPO and RLOO on a tiny real language model: through the stage as their recipes say, and what a step adds up to."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flows import recipes
from stages import loop, online, parts, records
from stages.batches import Item
from stages.config import Choice, Run
from stages.entry import Job
from stages.errors import UserError
from stages.learn import Optimize
from stages.online import Online
from stages.optimize import run as stage
from stages.panel import Tools
from stages.policies import tiny
from stages.policies.text.policy import TextPolicy
from stages.prepare.prompts import builtin
from stages.records import Message, Prompt
from stages.updates import SampledUpdates
from tests.test_online import Kept

NAMES = ("grpo", "rloo")
ADVANTAGE = {"grpo": Choice(name="group"), "rloo": Choice(name="leave_one_out")}
WORDS = ("zero", "one", "two", "three", "two", "one")
PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content=word),)) for i, word in enumerate(WORDS)]
UNEVEN = {"sampler": {"max_new_tokens": 96}}  # about a third of the samples ends before
every = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.language_model(made)
    return made


def policy_of(folder: Path, *, trained: bool = True, lora_r: int = 2) -> TextPolicy:
    return TextPolicy.load(folder, trainable=trained, lora_r=lora_r if trained else 0, seed=0)


def configured(name: str, asked: dict | None = None, chosen: dict | None = None, **settings) -> Optimize:
    """Four samples of at most eight tokens, wanted to be of some words, two prompts to a forward pass."""
    given = {"learning_rate": 3e-3, "per_device_train_batch_size": 2, "save_steps": 1, "warmup_ratio": 0, **settings}
    panel = {
        "rewards": {"length": {"low": 2, "high": 4}},
        "num_generations": 4,
        "advantage": ADVANTAGE[name],
        "sampler": {"max_new_tokens": 8},
    }
    return Optimize(objective=Choice(name=name, **(chosen or {})), online=Online(**{**panel, **(asked or {})}), **given)


def learn(
    folder: Path, scratch: Path, settings: Optimize, *, stop_after: int | None = None, lora_r: int = 2
) -> list[dict]:
    """Learn online from the untrained policy, its reference; returns the rows of the journal."""
    scratch.mkdir(exist_ok=True)
    notes = Kept(scratch / "metrics.jsonl", stop_after)
    policy, reference = policy_of(folder, lora_r=lora_r), policy_of(folder, trained=False)
    online.learn(policy, reference, PROMPTS, settings, Tools(), run=Run(seed=4), scratch=scratch, journal=notes)
    return notes.rows


def begun(policy: TextPolicy, reference: TextPolicy, settings: Optimize) -> SampledUpdates:
    made = SampledUpdates(policy, reference, settings, Tools(), seed=4)
    made.begin(PROMPTS[:4], 0)
    return made


def moved(folder: Path) -> TextPolicy:
    """A policy away from its reference, so that the pull has a gradient."""
    policy = policy_of(folder)
    noise = torch.Generator().manual_seed(5)
    for p in policy.parameters().values():
        p.data += 0.05 * torch.randn(p.shape, generator=noise)
    return policy


def gradient(policy: TextPolicy, updates: SampledUpdates, size: int) -> dict[str, torch.Tensor]:
    """Of a step of four prompts, `size` of them a forward pass."""
    loop.accumulate(updates.loss, PROMPTS[:4], 0, size)
    found = {name: p.grad for name, p in policy.parameters().items()}
    for p in policy.parameters().values():
        p.grad = None
    return found


# -------------------------------------------------------------------------------------------------- recipes


def laid(name: str, *over: dict) -> dict:
    """The committed params under a recipe and more overlays."""
    params = recipes.read(recipes.HERE.parents[1] / "params.yaml")
    for overlay in (recipes.load(name), *over):
        params = recipes.apply(params, overlay)
    return params


@every
def test_the_recipe_hangs_together(name: str) -> None:
    """It passes the stage's own check, and no longer once one of its rewards is misspelt; nothing is left of rounds."""
    paper, command, *_ = (recipes.HERE / "text" / f"{name}.yaml").read_text().splitlines()
    assert "arXiv" in paper
    assert command == f"# python -m flows.align --recipe {name}"
    params = laid(name)
    assert not params["selfplay"]["rounds"]
    assert params["evaluate"]["policy"] == "data/optimize"
    assert params["optimize"]["online"].get("advantage", {"name": "group"})["name"] == ADVANTAGE[name].name
    node = {"run": params["run"], "optimize": params["optimize"]}
    stage.check(stage.Settings.model_validate(node))
    node["optimize"]["online"]["rewards"]["exakt"] = node["optimize"]["online"]["rewards"].pop("exact")
    with pytest.raises(UserError, match="did you mean 'exact'"):
        stage.check(stage.Settings.model_validate(node))


class Journal(Kept):
    def checkpoint(self, folder, step) -> None:
        assert (folder / "adapter_model.safetensors").exists()


@every
def test_the_recipe_trains_through_the_stage(name: str, tmp_path: Path, monkeypatch) -> None:
    """On the tiny model of the recipe `tiny`: every reward of the recipe speaks, and the policy that is left loads."""
    monkeypatch.chdir(tmp_path)
    tiny.language_model(stage.POLICY)
    stage.PROMPTS.parent.mkdir(parents=True, exist_ok=True)
    asked = builtin("train", 8)
    records.write(stage.PROMPTS, asked)
    short = {"optimize": {"num_train_epochs": 2, "lora_r": 2, "online": {"sampler": {"max_new_tokens": 12}}}}
    params = laid(name, recipes.load("tiny"), short)
    config = stage.Settings.model_validate({"run": params["run"], "optimize": params["optimize"]})
    assert config.optimize.objective.name == name, "the tiny recipe leaves the objective alone"
    scratch = Path("scratch")
    (scratch / "out").mkdir(parents=True)
    journal = Journal(scratch / "metrics.jsonl")
    stage.run(Job(config, {}, scratch, scratch / "out", journal))
    online_node = config.optimize.online
    assert online_node is not None
    assert set(online_node.rewards) == {"exact", "format", "length"}
    assert {bool(p.answer) for p in asked} == {True, False}, "some prompts have an answer to be exact about"
    assert len(journal.rows) == 2 * 4 * online_node.num_iterations
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in journal.rows)
    assert any(row["reward_std"] > 0 for row in journal.rows)
    assert json.loads((scratch / "out/previous.json").read_text()) == {"previous": "data/sft"}
    before = TextPolicy.load(stage.POLICY)
    after = TextPolicy.load(scratch / "out")
    gone = [not torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True)]
    assert any(gone)


# -------------------------------------------------------------------------------------------------- a step


@every
@pytest.mark.parametrize("repeats", [1, 2])
def test_the_policy_leaves_its_behaviour_at_the_second_update_and_its_reference_for_good(
    folder, tmp_path, name, repeats
) -> None:
    rows = learn(folder, tmp_path, configured(name, {"num_iterations": repeats}))
    assert [row["approx_kl"] == 0 for row in rows] == [True, False][:repeats] * 3
    assert rows[0]["loss"] == pytest.approx(0, abs=1e-4)  # -A, whose mean over a group is 0, at the reference
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(row["kl"] != 0 for row in rows[repeats:])
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("grpo", {}),
        ("grpo", {"loss_type": "dr_grpo", "max_completion_length": 8}),
        ("grpo", {"loss_type": "dapo"}),
        ("rloo", {"beta": 0.5}),
    ],
)
@pytest.mark.parametrize("asked", [{}, UNEVEN, {**UNEVEN, "mask_truncated_completions": True}])
def test_a_step_is_the_same_in_one_forward_pass_or_in_many(folder, name, chosen, asked) -> None:
    found = []
    for size in (4, 1):
        policy = moved(folder)
        settings = configured(name, asked, chosen, per_device_train_batch_size=size)
        updates = begun(policy, policy_of(folder, trained=False), settings)
        found.append(gradient(policy, updates, size))
    whole, cut = found
    assert sum(float(value.abs().sum()) for value in whole.values()) > 0
    for key, value in whole.items():
        torch.testing.assert_close(value, cut[key], rtol=1e-3, atol=1e-5)


def test_what_was_cut_off_is_not_learned_from_and_its_reward_counts_all_the_same(folder) -> None:
    """The mean over the tokens of the step is that of the sample gradients: those that ended, over their tokens."""
    policy, reference = moved(folder), policy_of(folder, trained=False)
    asked, beta = {**UNEVEN, "mask_truncated_completions": True}, {"beta": 0.0}
    updates = begun(policy, reference, configured("grpo", asked, {**beta, "loss_type": "dapo"}))
    other = begun(policy, reference, configured("grpo", UNEVEN, beta))
    held = [one.samples for one in updates.held.values()]
    items = [item for samples in held for item in samples.items]
    advantage = torch.cat([samples.advantage.flatten() for samples in held])
    assert torch.equal(advantage, torch.cat([one.samples.advantage.flatten() for one in other.held.values()]))
    whole = [i for i, item in enumerate(items) if item.completion.finished]
    assert 0 < len(whole) < len(items)
    found = gradient(policy, updates, 2)
    rows = {i: row_alone(policy, items[i]) for i in whole}
    (sum(-advantage[i] * row.sum() for i, row in rows.items()) / sum(map(len, rows.values()))).backward()
    assert sum(float(p.grad.abs().sum()) for p in policy.parameters().values()) > 0
    for key, p in policy.parameters().items():
        torch.testing.assert_close(found[key], p.grad, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo"])
def test_a_step_of_answers_that_were_all_cut_off_moves_nothing(folder, loss_type) -> None:
    """Two tokens do not suffice any sample of these."""
    policy = moved(folder)
    asked = {"sampler": {"max_new_tokens": 2}, "mask_truncated_completions": True}
    settings = configured("grpo", asked, {"loss_type": loss_type})
    updates = begun(policy, policy_of(folder, trained=False), settings)
    assert not any(item.completion.finished for one in updates.held.values() for item in one.samples.items)
    assert all((slope == 0).all() for slope in gradient(policy, updates, 2).values())


def shortened(item: Item, tokens: int) -> Item:
    """A sample cut off after so many tokens: the tiny model itself hardly ever ends one."""
    completion = item.completion.model_copy(update={"tokens": item.completion.tokens[:tokens], "finished": False})
    return replace(item, completion=completion)


def row_alone(policy: TextPolicy, item: Item) -> torch.Tensor:
    """Log-prob of each token of one sample: the model over the whole row, no sharing, no padding."""
    before, after = policy.encode(item.messages, item.completion)
    logits = policy.model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(after)[:, None]).squeeze(-1)


@pytest.mark.parametrize("chosen", [{"loss_type": "grpo"}, {"loss_type": "bnpo"}, {}], ids=["grpo", "bnpo", "rloo"])
def test_a_step_of_groups_that_share_their_prompt_is_that_of_rows_alone(folder, chosen) -> None:
    """At policy = behaviour, away from the reference: the formulas of both papers, sample by sample, row by row."""
    name, beta = ("grpo", 0.5) if chosen else ("rloo", 0.5)
    policy, reference = moved(folder), policy_of(folder, trained=False)
    settings = configured(name, chosen={**chosen, "beta": beta}, per_device_train_batch_size=4)
    updates = begun(policy, reference, settings)
    (held,) = updates.held.values()
    samples = held.samples
    samples.items = [shortened(item, 1 + i % 8) for i, item in enumerate(samples.items)]
    found = gradient(policy, updates, 4)
    new = [row_alone(policy, item) for item in samples.items]
    with torch.no_grad():
        ref = [row_alone(reference, item) for item in samples.items]
    assert samples.advantage is not None
    a = samples.advantage.flatten()
    if name == "grpo":
        away = [other - each for other, each in zip(ref, new)]
        sums = [(-value * each + beta * (d.exp() - d)).sum() for value, each, d in zip(a, new, away)]
        mean = sum(map(len, new)) / len(new)
        own = {"grpo": [len(each) for each in new], "bnpo": [mean] * len(new)}[chosen["loss_type"]]
        shares = [total / n for total, n in zip(sums, own)]
    else:
        h = torch.stack([(each - other).sum().detach() for other, each in zip(ref, new)]).view(4, 4)
        others = (h.sum(1, keepdim=True) - h) / 3
        shares = [-value * each.sum() for value, each in zip(a - beta * (h - others).flatten(), new)]
    (sum(shares) / 16).backward()
    for key, p in policy.parameters().items():
        torch.testing.assert_close(found[key], p.grad, rtol=2e-3, atol=2e-5)


@every
def test_a_killed_run_ends_with_the_same_numbers(folder, tmp_path, name) -> None:
    settings = configured(name, {"num_iterations": 2})
    rows = learn(folder, tmp_path / "a", settings)
    with pytest.raises(KeyboardInterrupt):
        learn(folder, tmp_path / "b", settings, stop_after=3)
    assert learn(folder, tmp_path / "b", settings) == rows


# -------------------------------------------------------------------------------------------------- learning


@every
def test_the_reward_rises(folder, tmp_path, name) -> None:
    """All weights, sixteen samples of each prompt, ten updates: by 0.15 and more with the seeds that were tried."""
    asked = {"rewards": {"length": {"low": 6, "high": 12}}, "sampler": {"max_new_tokens": 16}, "num_generations": 16}
    given = {"num_train_epochs": 10, "per_device_train_batch_size": 6, "learning_rate": 3e-2}
    settings = configured(name, asked, {"beta": 1e-3}, lr_scheduler_type="constant", **given)
    rows = learn(folder, tmp_path, settings, lora_r=0)
    first, last = (sum(row["reward"] for row in part) / 2 for part in (rows[:2], rows[-2:]))
    assert last > first + 0.1


@every
def test_a_strong_pull_holds_the_policy_at_its_reference(folder, tmp_path, name) -> None:
    """The divergence after as many updates is smaller with it."""
    given = {"num_train_epochs": 6, "per_device_train_batch_size": 6, "learning_rate": 1e-2}
    ends = []
    for i, beta in enumerate((1e-6, 2.0)):
        rows = learn(folder, tmp_path / str(i), configured(name, chosen={"beta": beta}, **given))
        ends.append(rows[-1]["kl"])
    assert ends[1] < 0.7 * ends[0]


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_without_a_pull_no_reference_is_needed(name):
    objective = parts.find("objective", name)
    filled = {key: p.default for key, p in objective.settings.items()}
    assert "reference" in objective.needs(filled)
    assert "reference" not in objective.needs({**filled, "beta": 0.0})
