"""Online learning on tiny real policies: what a step learns from, the same however it is cut, killed or resumed."""

import json
from pathlib import Path

import pytest
import torch

from stages import images, loop, online, parts, preferences, samples
from stages.config import Choice, Run
from stages.errors import UserError
from stages.learn import Optimize
from stages.online import Online
from stages.optimize.run import Settings, check
from stages.panel import Tools
from stages.policies import tiny
from stages.policies.image import Policy as ImagePolicy
from stages.policies.text.policy import TextPolicy
from stages.records import Message, Prompt
from stages.updates import SampledUpdates, Updates, updates
from tests.image.test_policy import bare
from tests.test_loop import Notes

WORDS = ("zero", "one", "two", "three", "two", "one")
PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content=word),)) for i, word in enumerate(WORDS)]
BRIGHT = {"rewards": {"brightness": {}}, "num_generations": 4}
ONLINE = [
    name
    for name in parts.names("objective")
    if (s := parts.find("objective", name).spec).online and "image" in s.families
]


class Kept(Notes):
    """A journal's rows that outlive a kill; it kills the loop itself once `stop_after` steps are logged."""

    def __init__(self, metrics: Path, stop_after: int | None = None) -> None:
        known = metrics.read_text().splitlines() if metrics.exists() else []
        super().__init__(metrics, [json.loads(line) for line in known])
        self.stop_after = stop_after

    def log(self, step, values):
        super().log(step, values)
        if step == self.stop_after:
            raise KeyboardInterrupt


def image_policy(name: str = "ddpo", **settings) -> ImagePolicy:
    """A denoiser of 4 x 4 pixels, priced by what the objective is about: clean samples (AWM) or denoising steps."""
    exact = {} if name == "awm" else {"likelihood": "trajectory", "trajectory_steps": "all"}
    return bare("flow" if name == "flow_grpo" else "v_prediction", **{**exact, **settings})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.language_model(made)
    return made


def text_policy(folder: Path) -> TextPolicy:
    return TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)


def configured(name: str = "ddpo", asked: dict | None = None, chosen: dict | None = None, **settings) -> Optimize:
    given = {"learning_rate": 3e-3, "per_device_train_batch_size": 2, "save_steps": 1, "warmup_ratio": 0, **settings}
    return Optimize(
        objective=Choice(name=name, **(chosen or {})), online=Online(**{**BRIGHT, **(asked or {})}), **given
    )


def learn(policy, scratch: Path, settings: Optimize, *, prompts=PROMPTS, stop_after: int | None = None) -> list[dict]:
    """Learn online, the untrained twin of the policy being the reference; returns the rows of the journal."""
    scratch.mkdir(exist_ok=True)
    notes = Kept(scratch / "metrics.jsonl", stop_after)
    reference = image_policy(settings.objective.name) if policy.family == "image" else None
    online.learn(policy, reference, prompts, settings, Tools(), run=Run(seed=4), scratch=scratch, journal=notes)
    return notes.rows


def weights(policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.parameters().items()}


def begun(policy, settings: Optimize, prompts=PROMPTS, epoch: int = 0) -> Updates:
    made = updates(policy, image_policy(settings.objective.name), settings, Tools(), seed=4)
    made.begin(prompts, epoch)
    return made


def pictures(updates: SampledUpdates) -> dict[str, str]:
    """Image or text of every sample, by its name."""
    held = [item for one in updates.held.values() for item in one.samples.items]
    return {item.id: item.completion.image or item.completion.text for item in held}


# -------------------------------------------------------------------------------------------------- samples


def test_an_update_that_repeats_keeps_its_samples_and_another_epoch_draws_others():
    updates = begun(image_policy(), configured())
    first = pictures(updates)
    assert len(first) == 24
    updates.begin(PROMPTS, 0)
    assert pictures(updates) == first
    updates.begin(PROMPTS, 1)
    assert all(pictures(updates)[name] != picture for name, picture in first.items())


def test_samples_are_scored_by_what_they_show_and_those_of_a_prompt_share_their_draw():
    updates = begun(image_policy(), configured())
    draws = {}
    for epoch in (0, 1):
        updates.begin(PROMPTS, epoch)
        for one in updates.held.values():
            samples = one.samples
            bright = [float(images.decode(item.completion.image).mean() + 1) / 2 for item in samples.items]
            assert samples.reward.flatten().tolist() == pytest.approx(bright, abs=1e-6)
            for item in samples.items:
                draws.setdefault((epoch, item.id.split("/")[0]), set()).add(item.draw)
    assert len(draws) == 12
    assert all(len(names) == 1 for names in draws.values())
    assert len(set().union(*draws.values())) == 12


def test_a_prompts_loss_is_the_mean_over_its_samples():
    losses, stats = samples.by_prompt(torch.arange(6.0), {"kl": torch.tensor([1.0, 2.0])}, 2)
    assert losses.tolist() == [1.0, 4.0]
    assert stats["kl"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("family", ["image", "text"])
def test_the_samples_of_a_prompt_do_not_depend_on_the_batch(folder, family):
    policy = image_policy() if family == "image" else text_policy(folder)
    asked = {} if family == "image" else {"rewards": {"length": {}}, "sampler": {"max_new_tokens": 8}}
    whole = begun(policy, configured(asked=asked))
    alone = begun(policy, configured(asked=asked, per_device_train_batch_size=1), PROMPTS[3:4])
    assert pictures(alone).items() <= pictures(whole).items()
    assert whole.held["p2,p3"].reward[1].tolist() == alone.held["p3"].reward[0].tolist()


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_ratio_is_one_at_the_first_update_alone(tmp_path, repeats):
    """Six prompts in steps of four and two: the last step of an epoch is the shorter one."""
    settings = configured(
        asked={"num_iterations": repeats},
        num_train_epochs=3,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    rows = learn(image_policy(), tmp_path, settings)
    assert len(rows) == 6 * repeats
    firsts, seconds = rows[::repeats], rows[1::2] if repeats == 2 else []
    assert [row["approx_kl"] for row in firsts] == [0.0] * 6
    assert all(row["approx_kl"] > 0 for row in seconds)
    assert [row["reward"] for row in seconds] == [row["reward"] for row in firsts][: len(seconds)]
    assert len({row["reward"] for row in firsts}) == 6


def test_the_ratio_is_one_at_the_first_update_of_a_language_model(folder, tmp_path):
    asked = {"rewards": {"length": {"low": 2, "high": 4}}, "sampler": {"max_new_tokens": 8}, "num_iterations": 2}
    rows = learn(text_policy(folder), tmp_path, configured(asked=asked))
    assert [row["approx_kl"] == 0 for row in rows] == [True, False] * 3
    assert all(row["loss"] == pytest.approx(0, abs=1e-5) for row in rows[::2])  # -A, whose mean over a group is 0


# -------------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("killed_after", [1, 2, 3, 5])
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, repeats, killed_after):
    settings = configured(asked={"num_iterations": repeats}, num_train_epochs=2)
    whole, resumed = image_policy(), image_policy()
    rows = learn(whole, tmp_path / "a", settings)
    with pytest.raises(KeyboardInterrupt):
        learn(image_policy(), tmp_path / "b", settings, stop_after=killed_after)
    assert learn(resumed, tmp_path / "b", settings) == rows
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_killed_run_of_a_language_model_ends_with_the_same_bits(folder, tmp_path):
    asked = {"rewards": {"length": {"low": 2, "high": 4}}, "sampler": {"max_new_tokens": 8}}
    whole, resumed = text_policy(folder), text_policy(folder)
    rows = learn(whole, tmp_path / "a", configured(asked=asked))
    with pytest.raises(KeyboardInterrupt):
        learn(text_policy(folder), tmp_path / "b", configured(asked=asked), stop_after=2)
    assert learn(resumed, tmp_path / "b", configured(asked=asked)) == rows
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def gradient(policy, settings: Optimize, prompts) -> dict[str, torch.Tensor]:
    """Of a step's loss, cut into forward passes as the settings say."""
    updates = begun(policy, settings, prompts)
    loop.accumulate(updates.loss, prompts, 0, settings.per_device_train_batch_size)
    return {name: p.grad.clone() for name, p in policy.parameters().items() if p.grad is not None}


@pytest.mark.parametrize("std", ["group", "batch", "none"])
@pytest.mark.parametrize("name", ONLINE)
def test_a_step_is_the_same_in_one_forward_pass_or_in_many(name, std):
    """Every advantage is of all samples of the step, and the random truncation of a gradient is the step's."""
    asked = {"advantage": Choice(name="group", std=std)}
    whole, cut = (
        gradient(image_policy(name), configured(name, asked, per_device_train_batch_size=size), PROMPTS[:4])
        for size in (4, 1)
    )
    assert whole.keys() == cut.keys()
    assert sum(float(value.abs().sum()) for value in whole.values()) > 0
    for key, value in whole.items():
        torch.testing.assert_close(value, cut[key], rtol=1e-6, atol=1e-9)


def test_a_step_of_a_language_model_is_the_same_in_one_forward_pass_or_in_many(folder):
    asked = {"rewards": {"length": {"low": 2, "high": 4}}, "sampler": {"max_new_tokens": 8}}
    whole, cut = (
        gradient(text_policy(folder), configured(asked=asked, per_device_train_batch_size=size), PROMPTS[:4])
        for size in (4, 1)
    )
    assert sum(float(value.abs().sum()) for value in whole.values()) > 0
    for key, value in whole.items():
        torch.testing.assert_close(value, cut[key], rtol=1e-3, atol=1e-5)


def test_the_advantage_is_of_all_samples_of_the_step():
    updates = begun(image_policy(), configured(asked={"advantage": Choice(name="group", std="batch")}))
    parts_of = [one.samples for one in updates.held.values()]
    reward, advantage = (torch.cat([getattr(s, name) for s in parts_of]) for name in ("reward", "advantage"))
    assert [len(s.reward) for s in parts_of] == [2, 2, 2]
    wanted = (reward - reward.mean(1, keepdim=True)) / (reward.std(correction=0) + 1e-4)
    torch.testing.assert_close(advantage, wanted)


# -------------------------------------------------------------------------------------------------- ties

MIXED = [prompt.model_copy(update={"answer": "1" if i % 2 else None}) for i, prompt in enumerate(PROMPTS)]
DIGIT = {"rewards": {"digit": {}}}  # says nothing of a prompt without an answer: its samples tie


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize("name", ["ddpo", "flow_grpo"])
def test_dropped_ties_leave_the_mean_of_the_step(name, size):
    """Two of four prompts tie: without a pull the others' gradient counts twice, and so do their statistics."""
    free = {"beta": 0.0} if name == "flow_grpo" else {}
    found, told = {}, {}
    for ties in ("keep", "drop"):
        policy = image_policy(name)
        settings = configured(name, {**DIGIT, "ties": ties}, free, per_device_train_batch_size=size)
        updates = begun(policy, settings, MIXED[:4])
        told[ties] = loop.accumulate(updates.loss, MIXED[:4], 0, size)
        found[ties] = {key: p.grad.clone() for key, p in policy.parameters().items() if p.grad is not None}
    assert sum(float(value.abs().sum()) for value in found["keep"].values()) > 0
    for key, value in found["keep"].items():
        torch.testing.assert_close(found["drop"][key], 2 * value, rtol=1e-5, atol=1e-9)
    assert told["drop"]["reward"] == told["keep"]["reward"]
    assert told["drop"]["loss"] == pytest.approx(2 * told["keep"]["loss"], abs=1e-6)


def test_dropped_ties_are_pulled_nowhere_and_are_not_priced():
    """Away from the reference a prompt that ties still has its divergence where it is kept: beta * kl."""
    found = {}
    for ties in ("keep", "drop"):
        policy = image_policy("flow_grpo")
        policy.model.outer.weight.data += 0.01
        settings = configured("flow_grpo", {**DIGIT, "ties": ties}, {"beta": 0.5}, per_device_train_batch_size=4)
        updates = begun(policy, settings, MIXED[:4])
        (one,) = updates.held.values()
        found[ties] = updates.loss(MIXED[:4], 0)[0].detach(), {item.id.split("/")[0] for item in one.samples.items}
    assert found["keep"][1] == {"p0", "p1", "p2", "p3"}
    assert found["drop"][1] == {"p1", "p3"}
    assert (found["keep"][0][[0, 2]] > 0).all()
    assert found["drop"][0][[0, 2]].tolist() == [0, 0]
    torch.testing.assert_close(found["drop"][0][[1, 3]], 2 * found["keep"][0][[1, 3]])


def test_a_step_of_ties_alone_moves_nothing(tmp_path):
    policy = image_policy("flow_grpo")
    before = weights(policy)
    rows = learn(policy, tmp_path, configured("flow_grpo", {**DIGIT, "ties": "drop"}), prompts=PROMPTS)
    assert [row["grad_norm"] for row in rows] == [0.0] * 3
    assert all(torch.equal(value, before[key]) for key, value in weights(policy).items())


def test_without_ties_dropping_them_changes_nothing(tmp_path):
    asked = ({"ties": ties, "num_iterations": 2} for ties in ("keep", "drop"))
    kept, dropped = (learn(image_policy(), tmp_path / str(i), configured(asked=a)) for i, a in enumerate(asked))
    assert kept == dropped


# -------------------------------------------------------------------------------------------------- learning

RISES = {"ddpo": {"clip": 0.1}, "flow_grpo": {"clip": 0.1, "beta": 0.0}, "awm": {}, "draft": {"k": 2}, "alignprop": {}}


@pytest.mark.parametrize("name", RISES)
def test_the_reward_rises(tmp_path, name):
    settings = configured(
        name,
        {"num_generations": 8},
        RISES[name],
        num_train_epochs=15,
        per_device_train_batch_size=6,
        learning_rate=1e-2,
    )
    rows = learn(image_policy(name), tmp_path, settings)
    first, last = (sum(row["reward"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.05


def test_the_reward_of_a_language_model_rises(folder, tmp_path):
    asked = {"rewards": {"length": {"low": 6, "high": 12}}, "sampler": {"max_new_tokens": 16}, "num_generations": 8}
    given = {"num_train_epochs": 10, "per_device_train_batch_size": 6, "learning_rate": 3e-2}
    rows = learn(text_policy(folder), tmp_path, configured("ddpo", asked, {"clip": 0.2}, **given))
    first, last = (sum(row["reward"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.08


@pytest.mark.parametrize("name", ONLINE)
def test_every_online_objective_learns_from_samples(tmp_path, name):
    policy = image_policy(name)
    before = weights(policy)
    rows = learn(policy, tmp_path, configured(name))
    assert len(rows) == 3
    assert all({"loss", "reward", "grad_norm"} <= row.keys() for row in rows)
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in rows)
    assert any(not torch.equal(value, before[key]) for key, value in weights(policy).items())


# -------------------------------------------------------------------------------------------------- mistakes

IMAGE, TEXT = {"family": "image"}, {"family": "text"}
MISTAKES = [
    ("ddpo", IMAGE, None, "objective 'ddpo' learns online; add `online:"),
    ("ddpo", IMAGE, {}, "no reward or judge has a weight"),
    ("ddpo", IMAGE, {"rewards": {"brightness": {"weight": 0}}}, "no reward or judge has a weight"),
    ("ddpo", IMAGE, {"rewards": {"brigthness": {}}}, "did you mean 'brightness'?"),
    ("ddpo", IMAGE, {"rewards": {"relevance": {}}}, "reward 'relevance' does not fit the family 'image'"),
    ("ddpo", TEXT, {"rewards": {"brightness": {}}}, "reward 'brightness' does not fit the family 'text'"),
    ("flow_grpo", TEXT, {"rewards": {"length": {}}}, "objective 'flow_grpo' does not fit the family 'text'"),
    ("ddpo", IMAGE, {**BRIGHT, "advantage": {"name": "grup"}}, "no advantage is called 'grup'; did you mean 'group'?"),
    ("ddpo", IMAGE, {**BRIGHT, "advantage": {"name": "group", "std": "all"}}, "std = 'all'"),
    ("ddpo", IMAGE, {**BRIGHT, "sampler": {"step": 3}}, "samples without 'step'; did you mean 'steps'?"),
    ("ddpo", IMAGE, {**BRIGHT, "sampler": {"steps": "few"}}, "optimize.online.sampler.steps: 'few'"),
    ("ddpo", IMAGE, {**BRIGHT, "sampler": {"steps": "3"}}, "optimize.online.sampler.steps: '3'"),
    ("ddpo", IMAGE, {**BRIGHT, "sampler": {"seed": 3}}, "samples without 'seed'"),
    ("ddpo", TEXT, {"rewards": {"length": {}}, "sampler": {"steps": 3}}, "the family 'text' samples without 'steps'"),
    ("draft", IMAGE, {"rewards": {"compressibility": {}}}, "reward 'compressibility' has no gradient"),
    ("draft", IMAGE, {**BRIGHT, "judges": {"self_pairwise": {}}}, "judge 'self_pairwise'"),
    ("alignprop", IMAGE, {**BRIGHT, "ties": "drop"}, "optimize.online.ties: objective 'alignprop' samples anew"),
    ("draft", IMAGE, {**BRIGHT, "num_iterations": 2}, "optimize.online.num_iterations: objective 'draft' samples anew"),
    ("alignprop", IMAGE, {**BRIGHT, "sampler": {"steps": 3}}, "optimize.online.sampler: objective 'alignprop' samples"),
]


@pytest.mark.parametrize(("name", "run", "asked", "says"), MISTAKES, ids=[f"{m[0]}-{m[3][-24:]}" for m in MISTAKES])
def test_mistakes_are_one_line_before_any_model_is_loaded(name, run, asked, says):
    node = {"run": run, "optimize": {"objective": {"name": name}, **({} if asked is None else {"online": asked})}}
    with pytest.raises(UserError) as caught:
        check(Settings.model_validate(node))
    assert says in str(caught.value)
    assert str(caught.value).startswith("params.yaml optimize")
    assert "\n" not in str(caught.value)


def test_what_is_right_passes():
    """Each node passes, and is refused once one name in it is misspelt: it was looked at."""
    asked = {**BRIGHT, "sampler": {"steps": 3, "eta": 1}, "advantage": {"name": "leave_one_out"}}
    for name, given in (("ddpo", asked), ("draft", BRIGHT)):
        node = {"run": IMAGE, "optimize": {"objective": {"name": name}, "online": given}}
        check(Settings.model_validate(node))
        node["optimize"]["online"] = {**given, "rewards": {"brightnes": {}}}
        with pytest.raises(UserError, match="brightness"):
            check(Settings.model_validate(node))


def test_a_sampler_without_chance_has_nothing_to_learn_from():
    with pytest.raises(UserError, match="deterministic sampler .* has no log-probs"):
        gradient(image_policy(eta=0), configured(), PROMPTS[:2])


def test_samples_of_other_steps_than_the_policys_cannot_be_priced():
    with pytest.raises(UserError, match="its trajectory has 0 numbers"):
        gradient(image_policy(), configured(asked={"sampler": {"steps": 3}}), PROMPTS[:2])


def test_an_offline_objective_with_nothing_labelled(tmp_path):
    (tmp_path / "preferences.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no preference; rerun the stage that writes it"):
        preferences.read(tmp_path / "preferences.jsonl")
