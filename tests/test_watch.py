"""Watching samples: when training ends, with which weights, and what the journal and MLflow are shown."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from stages import images, loop
from stages.config import Training
from stages.errors import UserError
from stages.journal import Journal
from stages.optimize.run import Settings, check
from stages.panel import Tools
from stages.policies.image import Policy
from stages.records import Message, Prompt
from stages.watch import Watch, Watcher, decide, paired
from tests.image.test_policy import bare

WORDS = ("zero", "one", "two", "three", "two", "one", "three", "zero")
PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content=word),)) for i, word in enumerate(WORDS)]
BRIGHT = {"brightness": {}}
STEPS = 9


class Seen(Watcher):
    """A watcher that notes the weights at every step, and kills training at one."""

    def __init__(self, *given, stop_at: int | None = None, **named) -> None:
        super().__init__(*given, **named)
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.stop_at = stop_at

    def __call__(self, step, last=False):
        self.weights[step] = weights(self.policy)
        if step == self.stop_at:
            raise KeyboardInterrupt
        return super().__call__(step, last)


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.parameters().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def train(scratch: Path, *, towards: float, stop_at: int | None = None, rate: float = 0.002, **watch):
    """Train for bright samples (`towards` 1) or dark ones (-1), watched by their brightness."""
    policy = bare("v_prediction")

    def loss(batch, epoch):
        pixels = policy.differentiable_sample(batch, seed=epoch, grad_steps=5)
        return -towards * pixels.clamp(-1, 1).mean((1, 2, 3)), {}

    settings = Training(
        num_train_epochs=STEPS, per_device_train_batch_size=8, learning_rate=rate, save_steps=3, warmup_ratio=0
    )
    with Journal("optimize", scratch / "journal", {}, {}) as journal:
        looks = Watch(**{"rewards": BRIGHT, "steps": 2, "prompts": 8, "candidates": 2, **watch})
        seen = Seen(policy, PROMPTS, looks, Tools(), seed=0, scratch=scratch, journal=journal, stop_at=stop_at)
        loop.train(
            policy,
            PROMPTS,
            loss,
            settings,
            seed=0,
            scratch=scratch,
            journal=journal,
            size=lambda _: 0,
            label="test",
            watch=seen,
        )
    return seen, [json.loads(line) for line in journal.metrics.read_text().splitlines()], journal


def darken(policy: Policy, by: float = 1.0) -> None:
    """Samples of a velocity that is too high everywhere come out darker."""
    with torch.no_grad():
        policy.model.outer.bias += by


def watcher(policy: Policy, **named) -> Watcher:
    journal = Journal("optimize", Path("scratch/journal"), {}, {})
    settings = Watch(**{"rewards": BRIGHT, "steps": 2, "prompts": 8, **named})
    return Watcher(policy, PROMPTS, settings, Tools(), seed=0, scratch=Path("scratch"), journal=journal)


def test_training_that_makes_samples_better_is_watched_to_its_end(client, tmp_path):
    seen, rows, _ = train(Path("scratch"), towards=1)
    assert len(rows) == STEPS
    told = {row["step"]: row for row in rows if "watch/score" in row}
    assert list(told) == [2, 4, 6, 8, 9], "the last step is looked at too"
    assert all(row["watch/z"] > 0 for row in told.values())
    assert told[9]["watch/change"] > told[2]["watch/change"] > 0
    first = json.loads(Path("scratch/first.json").read_text())["score"]
    for row in told.values():
        assert row["watch/score"] - sum(first) / len(first) == pytest.approx(row["watch/change"])
    assert equal(weights(seen.policy), seen.weights[STEPS])


def test_training_that_makes_samples_worse_ends_with_the_weights_that_passed(client, capsys):
    seen, rows, _ = train(Path("scratch"), towards=-1, max_drop=10.6)
    looks = {row["step"]: row["watch/z"] for row in rows if "watch/z" in row}
    last = rows[-1]["step"]
    passed = [0, *(step for step, z in looks.items() if z >= -10.6)]
    assert 2 < last < STEPS, "neither at once nor never"
    assert rows[-1]["watch/stop"] == 1.0
    assert not any("watch/stop" in row for row in rows[:-1])
    assert looks[last] < -10.6
    assert passed[-1] == last - 2
    assert equal(weights(seen.policy), seen.weights[passed[-1]])
    assert not equal(weights(seen.policy), seen.weights[last])
    assert f"stopped at step {last}" in capsys.readouterr().out


def test_a_huge_learning_rate_ends_with_the_weights_of_step_0(client):
    seen, rows, _ = train(Path("scratch"), towards=-1, rate=0.3)
    assert rows[-1]["step"] == 2
    assert equal(weights(seen.policy), seen.weights[0])


@pytest.mark.parametrize(("towards", "stop_at"), [(1, 1), (1, 5), (-1, 3), (-1, 4)])
def test_a_killed_run_resumes_with_the_scores_of_its_first_look(client, towards, stop_at):
    whole, rows, _ = train(Path("whole"), towards=towards, max_drop=10.6)
    with pytest.raises(KeyboardInterrupt):
        train(Path("half"), towards=towards, max_drop=10.6, stop_at=stop_at)
    first = Path("half/first.json").read_bytes()
    resumed, again, _ = train(Path("half"), towards=towards, max_drop=10.6)
    assert again == rows
    assert min(resumed.weights) == (0 if stop_at <= 3 else 4), "it goes on from the checkpoint, after step 3"
    assert Path("half/first.json").read_bytes() == first == Path("whole/first.json").read_bytes()
    assert equal(weights(whole.policy), weights(resumed.policy))


def test_a_run_killed_after_the_watch_ended_it_ends_there_again(client):
    once, rows, _ = train(Path("scratch"), towards=-1)
    twice, again, _ = train(Path("scratch"), towards=-1)
    assert again == rows
    assert equal(weights(once.policy), weights(twice.policy))


def test_looks_are_paired_and_the_same_each_time(client):
    """The policy of step 0, looked at again, has changed nothing; a darker one has on every prompt."""
    policy = bare("v_prediction")
    looker = watcher(policy)
    assert looker(0) == {}
    assert looker(1) == {}
    still = looker(2)
    assert (still["watch/change"], still["watch/z"]) == (0.0, 0.0)
    before = json.loads(looker.first.read_text())["score"]
    assert len(before) == 8
    darken(policy)
    told = looker(4)
    assert [c.score for c in looker.look(5)] == before, "the weights that passed are back"
    darken(policy)
    after = [c.score for c in looker.look(5)]
    assert all(b > a for b, a in zip(before, after, strict=True))
    change, error = paired(before, after)
    assert told["watch/change"] == pytest.approx(change)
    assert told["watch/z"] == pytest.approx(change / error)
    assert told["watch/stop"] == 1.0


def test_a_score_is_that_of_a_prompt(client):
    """Four samples of a prompt are one piece of evidence."""
    looker = watcher(bare("v_prediction"), candidates=4, prompts=3)
    looker(0)
    scored = looker.look(0)
    assert len(scored) == 12
    means = [sum(c.score for c in scored[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert json.loads(looker.first.read_text())["score"] == pytest.approx(means)


def test_a_score_that_rises_does_not_hide_a_reward_that_may_not_be_lost(client, capsys):
    """Images that get brighter get less dark: their score rises for ever, and a guard without weight ends it."""
    guarded = {"rewards": {**BRIGHT, "incompressibility": {"weight": 0}}}
    free, rows, _ = train(Path("free"), towards=1, rate=0.05, **guarded)
    curve = {row["step"]: row["watch/incompressibility"] for row in rows if "watch/score" in row}
    start = json.loads(Path("free/first.json").read_text())["rewards"]["incompressibility"]
    limit = (start - min(curve.values())) / 2
    assert limit > 0, "a white image is small"
    broken = min(step for step, value in curve.items() if start - value > limit)
    held, rows, _ = train(Path("held"), towards=1, rate=0.05, **guarded, may_lose={"incompressibility": limit})
    assert rows[-1]["step"] == broken
    assert rows[-1]["watch/stop"] == 1.0
    assert rows[-1]["watch/z"] > 0, "the score itself had nothing against it"
    passed = max(step for step in (0, *curve) if step < broken)
    assert equal(weights(held.policy), free.weights[passed])
    assert "incompressibility by" in capsys.readouterr().out


@pytest.mark.parametrize(("after", "ends"), [(-1.0, False), (-1.5, False), (-1.6, True), (0.0, False)])
def test_a_reward_may_lose_as_much_as_it_may(after, ends):
    watch = Watch(rewards={"digit": {}}, may_lose={"digit": 0.5})
    score = [0.5, 0.6]
    told, reasons = decide(
        watch, {"score": score, "rewards": {"digit": -1.0}}, {"score": score, "rewards": {"digit": after}}
    )
    assert told["watch/digit"] == after
    assert reasons == (["digit by 0.600"] if ends else [])


def test_the_best_and_the_worst_and_the_scores_reach_mlflow(client):
    seen, rows, journal = train(Path("scratch"), towards=1, sampler={"steps": 3})
    assert client.get_run(journal.run_id).info.status == "FINISHED"
    history = {p.step: p.value for p in client.get_metric_history(journal.run_id, "watch/score")}
    assert history == {row["step"]: row["watch/score"] for row in rows if "watch/score" in row}
    kept = [f.path for f in client.list_artifacts(journal.run_id, "images")]
    for step in (0, 2, 9):
        assert any("best_and_worst" in name and f"+step+{step}+" in name for name in kept), (step, kept)
    sheet = Image.open(journal.folder / "images/best_and_worst-9.png")
    assert sheet.size == (8 * 68 + 4, 2 * 68 + 4)
    ranked = sorted(seen.look(10), key=lambda c: -c.score)
    rows_of = [[c.image for c in ranked[:8]], [c.image for c in ranked[-8:]]]
    assert sheet.tobytes() == images.grid(rows_of, side=64).tobytes()


MISTAKES = [
    ({}, "optimize.watch: no reward or judge has a weight"),
    ({"rewards": {"brightnes": {}}}, "did you mean 'brightness'?"),
    ({"rewards": {"relevance": {}}}, "reward 'relevance' does not fit the family 'image'"),
    ({"rewards": BRIGHT, "may_lose": {"digit": 0.5}}, "optimize.watch.may_lose: 'digit' does not watch"),
    ({"rewards": BRIGHT, "judges": {"self_pairwise": {}}}, "optimize.watch.judges: watching asks rewards only"),
    ({"rewards": BRIGHT, "sampler": {"stps": 3}}, "optimize.watch.sampler: the family 'image' samples without 'stps'"),
]


@pytest.mark.parametrize(("node", "says"), MISTAKES, ids=[says[-16:] for _, says in MISTAKES])
def test_mistakes_are_one_line_before_any_model_is_loaded(node, says):
    with pytest.raises(UserError) as caught:
        check(Settings.model_validate({"run": {"family": "image"}, "optimize": {"watch": node}}))
    assert says in str(caught.value)
