"""Look at the likelihoods of a few preferences as training goes, and raise the alarm where they went too far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from stages import feed, files, signals
from stages.batches import Item, Pairs
from stages.config import Config
from stages.errors import UserError
from stages.pairs import completion
from stages.policies.family import check_sampling
from stages.preferences import Preference
from stages.records import Prompt, Single
from stages.reduce import average
from stages.watch import Kept

if TYPE_CHECKING:
    from stages.journal import Journal
    from stages.policies.family import Policy

WHERE = "params.yaml optimize.diagnose"
Looked = dict[str, float]


class Diagnose(Config):
    """The node `optimize.diagnose`: at what, how often, and how much is too much."""

    steps: Annotated[int, Field(ge=1)] = 20  # between two looks
    prompts: Annotated[int, Field(ge=1)] = 8  # whose preferences are looked at, one of each
    held_out: bool = False  # nothing is learned from these prompts; else what is watched is trained on too
    sample: bool = False  # the policy answers them as well, and the signs are those of its own answers
    sampler: dict[str, Any] = Field(default_factory=dict)  # settings of the policy's own sampling
    top_k: Annotated[int, Field(ge=2)] = 10
    patience: Annotated[int, Field(ge=1)] = 2  # looks in a row at which entropy may not fall
    max_mass_loss: Annotated[float, Field(gt=0, lt=1)] = 0.05  # share of the top k's mass
    max_drift: Annotated[float, Field(gt=0)] = 2.0  # nats a token that the chosen answers may lose
    stop: bool = False  # at an alarm, with the weights of the last look before the trouble began


class Monitor:
    """Prices the same preferences at every look: what the journal calls `diagnose/...`, and three alarms.

    `better`, `worse`: mean over answers of the log-prob of a token; `gap`: their difference; `drift`: of `better`
    since step 0. `entropy`, in bits, and `mass` are of the `top_k` most likely tokens along the chosen answers, and
    `own_entropy`, `own_mass` along the policy's own. An alarm, once raised, is told at every later look too.
    """

    def __init__(
        self,
        policy: Policy,
        preferences: Sequence[Preference],
        settings: Diagnose,
        *,
        seed: int,
        scratch: Path,
        journal: Journal,
    ) -> None:
        self.policy, self.settings, self.seed, self.journal = policy, settings, seed, journal
        self.sides = sides(preferences, settings.prompts)
        self.seen, self.kept = scratch / "diagnosed.json", Kept(policy, scratch / "healthy.safetensors")

    def __call__(self, step: int, last: bool = False) -> dict[str, float]:
        """What a look after `step` steps shows: empty between looks; `watch/stop` where training ends."""
        if step % self.settings.steps and not last:
            return {}
        earlier = json.loads(self.seen.read_text()) if step else []
        looks: list[Looked] = [one for one in earlier if one["step"] < step] + [{"step": step, **self.look()}]
        files.write_json(self.seen, looks)
        found = [alarms(self.settings, looks[: n + 1]) for n in range(len(looks))]
        if self.settings.stop and not found[-1] and not troubled(looks):
            self.kept.keep(step)
        if not step:
            return {}
        self.tell(step, {name: why for name, why in found[-1].items() if not any(name in one for one in found[:-1])})
        told = {f"diagnose/{name}": value for name, value in looks[-1].items() if name != "step"}
        if "better" in looks[0]:
            told["diagnose/drift"] = looks[-1]["better"] - looks[0]["better"]
        told |= {f"alarm/{name}": float(any(name in one for one in found)) for name in ALARMS}
        if self.settings.stop and found[-1]:
            print(f"stopped at step {step} with the weights of step {self.kept.put_back()}")
            told["watch/stop"] = 1.0
        return told

    def tell(self, step: int, raised: dict[str, str]) -> None:
        """Say on the console, and to MLflow, which alarms are new."""
        for name, why in raised.items():
            print(f"alarm at step {step}: {why}")
            self.journal.tag({f"prefloop.alarm.{name}": f"step {step}: {why}"})

    def look(self) -> Looked:
        """Likelihoods and signs of the policy as it is now."""
        better, worse = (self.price(items) for items in self.sides)
        told = {name: mean(side[0]) for name, side in (("better", better), ("worse", worse)) if side[0]}
        told |= {"gap": told["better"] - told["worse"]} if len(told) == 2 else {}
        told |= {"entropy": mean(better[1]), "mass": mean(better[2])} if better[1] else {}
        if self.settings.sample:
            own = self.price(self.answers())
            told |= {"own_entropy": mean(own[1]), "own_mass": mean(own[2])} if own[1] else {}
        return told

    @torch.no_grad()
    def price(self, items: Sequence[Item]) -> tuple[list[float], list[float], list[float]]:
        """Means over the tokens of each answer: log-prob, entropy and mass of the most likely; none of silence."""
        found: list[tuple[Tensor, Tensor | None]] = []
        for batch in self.policy.batches(items):
            steps = self.policy.log_probs([items[i] for i in batch], top_k=self.settings.top_k)
            for row, real in enumerate(steps.mask):
                if real.any():
                    found.append((steps.logp[row][real], None if steps.top is None else steps.top[row][real]))
        tops = [top for _, top in found if top is not None]
        return (
            [float(logp.mean()) for logp, _ in found],
            [float(signals.entropy(top).mean()) for top in tops],
            [float(top.sum(-1).mean()) for top in tops],
        )

    def answers(self) -> list[Item]:
        """The policy's own answers to the prompts, drawn with the same seed at every look."""
        asked = [Prompt(id=item.id, messages=item.messages) for item in self.sides[0]]
        drawn = self.policy.sample(asked, 1, seed=self.seed, **self.settings.sampler)
        return [Item(c.id, p.messages, completion(c)) for p, c in zip(asked, drawn, strict=True) if not c.blank]


def sides(preferences: Sequence[Preference], prompts: int) -> tuple[list[Item], list[Item]]:
    """The better and the worse answer of prompts that are evenly spaced among all that have a better one."""
    found: dict[Any, dict[str, Item]] = {}
    for example in preferences:
        items = feed.items(example)
        both = {"better": items[0], "worse": items[-1]}
        if isinstance(example, Single):
            both = {} if example.label is None else {"better" if example.label else "worse": items[0]}
        for side, item in both.items():
            found.setdefault(example.messages, {}).setdefault(side, item)
    able = [both for both in found.values() if "better" in both]
    count = min(prompts, len(able))
    chosen = [able[n * len(able) // count] for n in range(count)]
    return [both["better"] for both in chosen], [both["worse"] for both in chosen if "worse" in both]


def learned(preferences: Sequence[Preference], settings: Diagnose | None) -> list[Preference]:
    """The preferences that are learned from: without the prompts that are held out.

    Raises:
        UserError: none is left.
    """
    if settings is None or not settings.held_out:
        return list(preferences)
    out = {item.messages for item in sides(preferences, settings.prompts)[0]}
    left = [example for example in preferences if example.messages not in out]
    if not left:
        mend = "hold out fewer prompts, or label more"
        raise UserError(f"all {len(out)} prompts are held out", where=f"{WHERE}.prompts", mend=mend)
    return left


ALARMS = ("entropy_reversal", "mass_decline", "chosen_drift")


def alarms(settings: Diagnose, looks: Sequence[Looked]) -> dict[str, str]:
    """Which alarms the looks up to now raise, and why."""
    whose = "own_" if "own_entropy" in looks[0] else ""
    spread, mass, better = (
        [one[name] for one in looks if name in one] for name in (f"{whose}entropy", f"{whose}mass", "better")
    )
    found: dict[str, str] = {}
    if spread and (times := signals.falls(spread)) >= settings.patience:
        what = f"the entropy of the {settings.top_k} likeliest tokens had risen and has fallen {times} times in a row"
        found["entropy_reversal"] = f"{what}, to {spread[-1]:.2f} bits"
    if mass and signals.shrunk(mass, spread, settings.max_mass_loss):
        what = f"the {settings.top_k} likeliest tokens hold {mass[-1]:.1%} of the probability"
        found["mass_decline"] = f"{what}, {mass[0]:.1%} at step 0"
    if better and (lost := better[0] - better[-1]) > settings.max_drift:
        found["chosen_drift"] = f"the chosen answers have lost {lost:.2f} nats a token since step 0"
    return found


def troubled(looks: Sequence[Looked]) -> bool:
    """Whether entropy is on its way down, though not yet for long enough to raise an alarm."""
    series = [one.get("own_entropy", one.get("entropy", 0.0)) for one in looks]
    return signals.falls(series) > 0


def per_token(batch: Pairs) -> dict[str, Tensor]:
    """What every step of training on pairs tells: log-prob of a chosen token, the gap, and the drift `[b]`, detached.

    `logps/drift` is measured from the reference, which is the policy of step 0 unless something else was chosen.
    """
    chosen, rejected = (average(side.logp.detach(), side.mask) for side in (batch.chosen, batch.rejected))
    told = {"logps/chosen_token": chosen, "logps/gap": chosen - rejected}
    if batch.chosen.ref is not None:
        told["logps/drift"] = chosen - average(batch.chosen.ref, batch.chosen.mask)
    return told


def check(settings: Diagnose | None, family: str) -> None:
    """The sampler takes its settings, and those are asked for.

    Raises:
        UserError: an unknown setting, or settings of samples that nobody draws.
    """
    if settings is None:
        return
    check_sampling(settings.sampler, family, where=f"{WHERE}.sampler")
    if settings.sampler and not settings.sample:
        raise UserError("no samples are drawn", where=f"{WHERE}.sampler", mend="remove it, or set sample: true")


def mean(values: Sequence[float]) -> float:
    """Mean of at least one number.

    >>> mean([1.0, 2.0])
    1.5
    """
    return sum(values) / len(values)
