"""Look at samples as training goes: their scores, their pictures, and an end to training that makes them worse."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from stages import files, labelling, panel
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


class Watcher:
    """Samples the same prompts with the same seed at every look, so that what differs is the policy.

    Training ends at the first look whose mean score lies more than `max_drop` standard errors below that of step 0,
    prompt by prompt; the weights of the last look that passed are put back. The last step is looked at too.
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
        self.kept, self.first = scratch / "passed.safetensors", scratch / "first.json"

    def __call__(self, step: int, last: bool = False) -> dict[str, float]:
        """What a look after `step` steps shows: empty between looks; `watch/stop` where training ends."""
        if step % self.settings.steps and not last:
            return {}
        k = self.settings.candidates
        values = [0.0 if c.score is None else c.score for c in self.look(step)]
        scores = [sum(values[i : i + k]) / k for i in range(0, len(values), k)]  # of a prompt
        if step == 0:
            files.write_json(self.first, scores)
            self.keep()
            return {}
        change, error = paired(json.loads(self.first.read_text()), scores)
        told = {"watch/score": sum(scores) / len(scores), "watch/change": change, "watch/z": change / max(error, 1e-12)}
        if told["watch/z"] < -self.settings.max_drop:
            self.put_back()
            print(f"samples got worse by {-change:.3f}, {-told['watch/z']:.1f} standard errors: stopped at step {step}")
            return {**told, "watch/stop": 1.0}
        self.keep()
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

    def keep(self) -> None:
        """Remember the weights as those of the last look that passed."""
        files.save_tensors(self.kept, dict(self.policy.parameters()), {})

    def put_back(self) -> None:
        """The weights of the last look that passed."""
        held, _ = files.load_tensors(self.kept)
        for name, parameter in self.policy.parameters().items():
            parameter.data.copy_(held[name])


def check(settings: Watch | None, family: str, *, where: str) -> None:
    """Everybody who scores exists, and needs nothing that is not there.

    Raises:
        UserError: naming who.
    """
    if settings is not None and settings.judges:
        raise UserError("watching asks rewards only", where=f"{where}.judges", mend="name rewards")
    if settings is not None:
        panel.check(settings, where=where, family=family)
        check_sampling(settings.sampler, family, where=f"{where}.sampler")


def paired(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Mean difference and its standard error.

    >>> paired([0.0, 0.0], [1.0, 3.0])
    (2.0, 1.0)
    """
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean = sum(differences) / len(differences)
    variance = sum((d - mean) ** 2 for d in differences) / max(1, len(differences) - 1)
    return mean, math.sqrt(variance / len(differences))
