"""Look at samples as training goes: their scores, their pictures, and an end to training that makes them worse."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages import files, labelling, panel, parts
from stages.errors import UserError
from stages.panel import Panel, Tools
from stages.policies.family import check_sampling
from stages.records import Candidate, Prompt

if TYPE_CHECKING:
    from stages.journal import Journal
    from stages.policies.family import Policy


class Watch(Panel):
    """The node `optimize.watch`: who scores the samples of the policy in training, and when they are too bad."""

    steps: Annotated[int, Field(ge=1)] = 20  # between two looks
    prompts: Annotated[int, Field(ge=2)] = 16
    candidates: Annotated[int, Field(ge=1)] = 1  # samples of a prompt
    sampler: dict[str, Any] = Field(default_factory=dict)  # settings of the policy's own sampling
    max_drop: Annotated[float, Field(ge=0)] = 3.0  # standard errors that the mean score may fall below step 0's
    may_lose: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)  # of a reward, in its own unit


class Kept:
    """The weights of a step that may turn out to be the best there was."""

    def __init__(self, policy: Policy, file: Path) -> None:
        self.policy, self.file = policy, file

    def keep(self, step: int) -> None:
        """Remember the weights as they are, in place of earlier ones."""
        files.save_tensors(self.file, dict(self.policy.parameters()), {"step": step})

    def put_back(self) -> int:
        """Give the policy the weights that were kept; returns the step that they are of."""
        held, facts = files.load_tensors(self.file)
        for name, parameter in self.policy.parameters().items():
            parameter.data.copy_(held[name])
        return int(facts["step"])


class Watcher:
    """Samples the same prompts with the same seed at every look, so that what differs is the policy.

    Training ends at the first look whose mean score lies more than `max_drop` standard errors below that of step 0,
    prompt by prompt, or where the mean of a reward named in `may_lose` is worse than at step 0 by more than that: what
    the score gains elsewhere does not make up for it, as it does in the mix. So a reward of weight 0 is a guard only.
    The weights of the last look that passed are put back. The last step is looked at too.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        settings: Watch,
        tools: Tools,
        *,
        seed: int,
        scratch: Path,
        journal: Journal,
    ) -> None:
        self.policy, self.settings, self.tools = policy, settings, tools
        self.prompts, self.seed, self.journal = list(prompts[: settings.prompts]), seed, journal
        self.kept, self.first = Kept(policy, scratch / "passed.safetensors"), scratch / "first.json"

    def __call__(self, step: int, last: bool = False) -> dict[str, float]:
        """What a look after `step` steps shows: empty between looks; `watch/stop` where training ends."""
        if step % self.settings.steps and not last:
            return {}
        seen = summary(self.look(step), self.settings.candidates)
        if step == 0:
            files.write_json(self.first, seen)
            self.kept.keep(step)
            return {}
        told, reasons = decide(self.settings, json.loads(self.first.read_text()), seen)
        if reasons:
            self.kept.put_back()
            print(f"samples got worse: {'; '.join(reasons)}: stopped at step {step}")
            return {**told, "watch/stop": 1.0}
        self.kept.keep(step)
        return told

    def look(self, step: int) -> list[Candidate]:
        """Scored samples; images of the best and the worst go to the journal."""
        drawn = self.policy.sample(self.prompts, self.settings.candidates, seed=self.seed, **self.settings.sampler)
        scored = labelling.score(self.settings, labelling.align(self.prompts, drawn), drawn, self.tools)
        ranked = sorted((c for c in scored if c.image), key=lambda c: -(c.score or 0.0))
        if ranked:
            rows = [[c.image for c in ranked[:8]], [c.image for c in ranked[-8:]]]
            self.journal.images("best_and_worst", step, rows)
        return scored


def check(settings: Watch | None, family: str, *, where: str) -> None:
    """Everybody who scores exists, and needs nothing that is not there.

    Raises:
        UserError: naming who.
    """
    if settings is None:
        return
    if settings.judges:
        raise UserError("watching asks rewards only", where=f"{where}.judges", mend="name rewards")
    panel.check(settings, where=where, family=family)
    for name in settings.may_lose:
        if name not in settings.rewards:
            what = f"'{name}' does not watch"
            raise UserError(what, where=f"{where}.may_lose", mend=f"add {name}: {{weight: 0}} to {where}.rewards")
    check_sampling(settings.sampler, family, where=f"{where}.sampler")


def summary(scored: Sequence[Candidate], k: int) -> dict[str, Any]:
    """`score`: the mean of each prompt's `k` candidates; `rewards`: the mean of each over those that it applies to.

    >>> seen = [Candidate(id=f"p/{i}", prompt="p", score=i, scores={"brightness": i / 2}) for i in range(2)]
    >>> summary(seen, 2)
    {'score': [0.5], 'rewards': {'brightness': 0.25}}
    """
    values = [0.0 if c.score is None else c.score for c in scored]
    told: dict[str, list[float]] = {}
    for candidate in scored:
        for name, value in candidate.scores.items():
            told.setdefault(name, []).append(value)
    return {
        "score": [sum(values[i : i + k]) / k for i in range(0, len(values), k)],
        "rewards": {name: sum(values) / len(values) for name, values in told.items()},
    }


def decide(settings: Watch, before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """What a look tells, and the reasons to end training there, of the summaries of step 0 and of the look."""
    change, error = paired(before["score"], after["score"])
    z = change / max(error, 1e-12)
    told = {"watch/score": sum(after["score"]) / len(after["score"]), "watch/change": change, "watch/z": z}
    told |= {f"watch/{name}": value for name, value in after["rewards"].items()}
    reasons = [f"the score by {-change:.3f}, {-z:.1f} standard errors"] if z < -settings.max_drop else []
    specs = {seat.key: seat.part.spec for seat in panel.seats(settings, "reward", where="params.yaml optimize.watch")}
    for name, limit in settings.may_lose.items():
        if name in before["rewards"] and name in after["rewards"]:
            lost = fall(specs[name], before["rewards"][name], after["rewards"][name])
            reasons += [f"{name} by {lost:.3f}"] if lost > limit else []
    return told, reasons


def fall(spec: parts.Spec, before: float, after: float) -> float:
    """By how much a reward became worse, in its own unit.

    >>> fall(parts.Spec(), -1.0, -1.5), fall(parts.Spec(higher=False), 3.0, 2.0)
    (0.5, -1.0)
    """
    return before - after if spec.higher else after - before


def paired(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Mean difference and its standard error.

    >>> paired([0.0, 0.0], [1.0, 3.0])
    (2.0, 1.0)
    """
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / max(1, len(differences) - 1)
    return mean, math.sqrt(variance / len(differences))
