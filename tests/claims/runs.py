"""The real learning code on the digits: preferences made and learned offline, and the policy's own samples online."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from stages import cached, declared, feed, labelling, learn, online, preferences, samples, updates
from stages.batches import Groups
from stages.config import Choice, Run
from stages.label.rewards import brightness
from stages.learn import Optimize
from stages.online import Online
from stages.panel import Panel, Tools
from stages.policies.image import Policy
from stages.policies.image.sampling import Rollout
from stages.records import Candidate, Prompt
from tests.claims import digits

BRIGHT = {"brightness": {}}  # the reward that most claims are about
CONSTANT = {"lr_scheduler_type": "constant", "warmup_ratio": 0.0, "lora_r": 0, "save_steps": 1_000_000}


class Notes:
    """A journal's rows on disk, without MLflow."""

    def __init__(self, folder: Path) -> None:
        self.metrics = folder / "metrics.jsonl"

    def rewind(self, step: int) -> None:
        assert step == 0, "nothing is resumed here"
        self.metrics.write_text("")

    def log(self, step: int, values: dict[str, float]) -> None:
        with self.metrics.open("a") as out:
            out.write(json.dumps({"step": step, **values}) + "\n")


def scored(drawn: list[Candidate], asked: list[Prompt]) -> list[Candidate]:
    """Candidates with their brightness."""
    return labelling.score(Panel(rewards=BRIGHT), labelling.align(asked, drawn), drawn, Tools())


def paired(pairing: str, asked: list[Prompt], judged: list[Candidate], seed: int, **settings) -> list:
    """What a pairing rule makes of scored candidates."""
    return preferences.pair(
        Choice(name=pairing, **settings), asked, judged, 0.1, declared.of(Panel(rewards=BRIGHT)), seed, "label"
    )


def offline(
    policy: Policy, reference: Policy, labelled: Sequence, objective: str, *, seed: int, steps: int, batch: int, **rest
) -> dict[str, float]:
    """Learn from preferences for about `steps` steps, each pair priced at another seeded draw in each epoch.

    `rest` are settings of the objective, and `learning_rate`, 1e-4 where it is not given.
    """
    rate = rest.pop("learning_rate", 1e-4)
    epochs = math.ceil(steps / math.ceil(len(labelled) / batch))
    settings = Optimize(
        objective=Choice(name=objective, **rest),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch,
        learning_rate=rate,
        **CONSTANT,
    )
    part, _ = settings.objective.part("objective", "optimize.objective")
    cache = cached.Cache()
    if "reference" in part.spec.needs:
        examples = feed.examples(part, labelled, where="labels")
        cache = feed.reference(reference, [i for e in examples for draw in range(epochs) for i in feed.items(e, draw)])
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        return learn.learn(
            policy, labelled, settings, cache, seed=seed, scratch=scratch, journal=Notes(scratch), label=objective
        )


def live(
    policy: Policy,
    reference: Policy | None,
    objective: str,
    *,
    seed: int,
    rounds: int,
    asked: list[Prompt] | None = None,
    batch: int = 10,
    samples: int = 8,
    updates: int = 1,
    learning_rate: float = 1e-4,
    advantage: dict | None = None,
    watch: Callable[..., dict[str, float]] | None = None,
    **rest,
) -> dict[str, float]:
    """Learn from some samples of each of `batch` prompts at a time, every prompt in each round.

    `rest` are settings of the objective; `watch` is called with the number of updates done.
    """
    asked = asked or digits.prompts()
    settings = Optimize(
        objective=Choice(name=objective, **rest),
        num_train_epochs=rounds,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        online=Online(
            rewards=BRIGHT,
            num_generations=samples,
            num_iterations=updates,
            advantage=Choice(**(advantage or {"name": "group"})),
        ),
        **CONSTANT,
    )
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        return online.learn(
            policy,
            reference,
            asked,
            settings,
            Tools(),
            run=Run(family="image", seed=seed),
            scratch=scratch,
            journal=Notes(scratch),
            watch=watch,
        )


def by_hand(
    policy: Policy,
    loss: Callable[[Rollout, Tensor], Tensor],
    *,
    seed: int,
    rounds: int,
    updates: int = 1,
    learning_rate: float = 1e-4,
    offset: float = 0.0,
) -> None:
    """Baselines that are no part: each round draws 8 samples of the ten digits, and descends a loss of them.

    Args:
        policy: learns.
        loss: of the samples and their rewards `[10, 8]`, brightness on the panel's scale of 0 to 1.
        seed: of the samples.
        rounds: how many times it samples.
        updates: descents on the same samples.
        learning_rate: of AdamW.
        offset: what the reward of a digit has above that of the digit before.
    """
    asked = digits.prompts()
    owners = [prompt for prompt in asked for _ in range(8)]
    parameters = list(policy.parameters().values())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for number in range(rounds):
        found = policy.rollout(asked, 8, seed=seed + 1_000_003 * (number + 1))
        light = (brightness.pixels(found.pixels, owners) + 1) / 2
        reward = light.view(10, 8) + offset * torch.arange(10)[:, None]
        for _ in range(updates):
            optimizer.zero_grad()
            loss(found, reward).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()


def one_group(found: Rollout, policy: Policy, reward: Tensor) -> Groups:
    """All samples as one group, whatever their prompt: its mean is a baseline that knows no prompt."""
    return samples.grouped(policy.step_logp(found), reward.view(1, -1))


@contextmanager
def offset(step: float) -> Iterator[None]:
    """Inside, online samples of a digit get `step` times its number on top of their reward.

    Rewards are rounded to a grid on which that loses no bit, with a step of 0 too.
    """
    plain = updates.draw

    def draw(policy: Policy, prompts: Sequence[Prompt], *rest, **named) -> samples.Samples:
        found = plain(policy, prompts, *rest, **named)
        more = torch.tensor([[step * int(prompt.answer or 0)] for prompt in prompts])
        return replace(found, reward=(found.reward * 4096).round() / 4096 + more)

    updates.draw = draw
    try:
        yield
    finally:
        updates.draw = plain


class Every:
    """Figures of the policy after some of the updates."""

    def __init__(self, policy: Policy, *steps: int, **sampling) -> None:
        self.policy, self.steps, self.sampling = policy, steps, sampling
        self.seen: dict[int, dict[str, float]] = {}

    def __call__(self, step: int, last: bool = False) -> dict[str, float]:
        """Look at the policy where this number of updates is one of those asked for."""
        if step in self.steps:
            self.seen[step] = digits.look(self.policy, **self.sampling)
        return {}


@lru_cache
def ddpo(seed: int) -> dict[int, dict[str, float]]:
    """DDPO on brightness, 80 images a round and two updates on them: figures by the number of images."""
    policy = digits.policy(seed, likelihood="trajectory", trajectory_steps="all")
    every = Every(policy, 8, 50, 100)
    live(policy, None, "ddpo", seed=seed, rounds=50, updates=2, clip=1e-2, watch=every)
    return {step * 40: figures for step, figures in every.seen.items()}


def flow_grpo(seed: int, *, beta: float = 0.0, learning_rate: float = 3e-4) -> Policy:
    """Flow-GRPO on brightness: twenty rounds of 80 images, one update each."""
    settings = {"likelihood": "trajectory", "trajectory_steps": "all"}
    policy, reference = (digits.policy(seed, "flow", **settings) for _ in range(2))
    told = {"learning_rate": learning_rate, "advantage": {"name": "group", "std": "batch"}, "clip": 1e-2, "beta": beta}
    live(policy, reference, "flow_grpo", seed=seed, rounds=20, **told)
    return policy


def flowed(policy: Policy) -> dict[str, float]:
    """Figures of a flow's samples by 20 steps of its ODE."""
    return digits.look(policy, steps=20, eta=0.0)


def back_propagated(seed: int, objective: str, **settings) -> dict[str, float]:
    """20 updates through the deterministic sampler, 16 images each: 320 as in four rounds of DDPO."""
    policy = digits.policy(seed, eta=0.0)
    live(policy, None, objective, seed=seed, rounds=2, asked=digits.prompts(80), batch=8, samples=2, **settings)
    return digits.look(policy, eta=1.0)


@lru_cache
def drawn(seed: int) -> tuple[list[Prompt], list[Candidate]]:
    """A thousand prompts and four samples of the base for each, scored by brightness."""
    asked = digits.prompts(1000)
    return asked, scored(digits.policy(seed).sample(asked, 4, seed=seed + 1), asked)


@lru_cache
def held_out(seed: int) -> tuple[list[Prompt], list[Candidate]]:
    """Other samples of the base that nothing is trained on."""
    asked = digits.prompts(300)
    return asked, scored(digits.policy(seed).sample(asked, 2, seed=seed + 77_777), asked)
