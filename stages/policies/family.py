"""What every family of policy offers, and how a stage gets one: by `run.family`, a package of this folder.

A family's package defines `Policy`, its `Settings` (the node `run.policy`) and `Scorer`, its reward model.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_type_hints

from pydantic import TypeAdapter, ValidationError

from stages.batches import Item, Steps
from stages.config import Config, Run
from stages.errors import UserError, nearest
from stages.records import Candidate, Prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Policy(Protocol):
    """What is aligned.

    A family whose policies compute something once for all that follow also has a `memory`, see `cached.remember`; one
    that can tell what an answer's key content is has `key_ranks`, see `feed.key_ranks`; one whose candidates have
    `tokens` tells the text of each by `pieces(tokens)`.
    """

    family: str
    seeded: bool  # log-probs are taken at a seeded draw of (timestep, noise), another one each epoch
    device: torch.device

    @property
    def chunk(self) -> int:
        """Candidates worth asking for at once; a stage that is killed loses no more."""
        ...

    def sample(self, prompts: Sequence[Prompt], k: int, *, seed: int, **settings: Any) -> list[Candidate]:
        """K candidates of each prompt, ordered by prompt then k; the settings are the family's samplers'."""
        ...

    def log_probs(
        self,
        items: Sequence[Item],
        *,
        entropy: bool = False,
        top_k: int = 0,
        hidden: bool = False,
        reference: Policy | None = None,
    ) -> Steps:
        """Log-prob of every step of each completion, `[b,t]` in nats, float32, differentiable.

        With a reference its log-probs stand in `ref`, and where the family can tell, the exact `kl` of each step. With
        `top_k` the probabilities of that many most likely tokens stand in `top`, where steps are tokens; there too the
        `hidden` states are told where they are asked for.
        """
        ...

    def batches(self, items: Sequence[Item]) -> Iterator[list[int]]:
        """Indices of items that are best priced together without a gradient."""
        ...

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What an optimizer moves, by name."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` reads: the adapter alone where there is one."""
        ...


class Scorer(Protocol):
    """A reward model: raw scores to learn, standardised ones to use."""

    mean: float
    std: float
    outputs: Sequence[str]  # a name for each rating that it learnt; none of one that learnt preferences

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What an optimizer moves, by name."""
        ...

    def score(self, items: Sequence[Item]) -> Tensor:
        """Raw scores `[b,m]` of m outputs, differentiable; one where they have no names."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` reads, with the constants that standardise its scores."""
        ...

    def __call__(self, prompts: Sequence[Prompt], candidates: Sequence[Candidate], output: str = "") -> list[float]:
        """Scores of one output, standardised, without a gradient."""
        ...


def package(name: str) -> Any:
    """The family's package."""
    return importlib.import_module(f"stages.policies.{name}")


def settings(run: Run) -> Config:
    """The node `run.policy`, checked against the family's own settings and filled in.

    Raises:
        UserError: an unknown key or a wrong value.
    """
    schema = package(run.family).Settings
    try:
        return schema.model_validate(run.policy)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            what, mend = f"the family '{run.family}' has no setting '{key}'", nearest(key, list(schema.model_fields))
            raise UserError(what, where="params.yaml run.policy", mend=mend) from None
        where = f"params.yaml run.policy.{key}"
        raise UserError(f"{first['input']!r}: {first['msg']}", where=where, mend="correct the value") from None


def check_sampling(settings: dict[str, Any], name: str, *, where: str) -> None:
    """They are settings of the family's own sampling.

    Raises:
        UserError: an unknown setting, or a value of another type.
    """
    if not settings:
        return
    sample = package(name).Policy.sample
    known = [p.name for p in inspect.signature(sample).parameters.values() if p.default is not p.empty]
    hints = get_type_hints(sample)
    for key, value in settings.items():
        if key not in known:
            raise UserError(f"the family '{name}' samples without '{key}'", where=where, mend=nearest(key, known))
        try:
            TypeAdapter(hints[key]).validate_python(value, strict=True)
        except ValidationError as error:
            what = f"{value!r}: {error.errors()[0]['msg']}"
            raise UserError(what, where=f"{where}.{key}", mend="correct the value") from None


def load(run: Run, folder: Path) -> Policy:
    """A policy to sample from and to price with, its adapter folded into the weights.

    Raises:
        UserError: no usable model there.
    """
    device, dtype = run.place()
    policy: Policy = package(run.family).Policy.load(folder, settings(run), device=device, dtype=dtype)
    return policy


def to_train(run: Run, folder: Path, *, lora_r: int) -> Policy:
    """A policy to train: its adapter goes on, or a new one of rank `lora_r` starts; 0 trains all weights.

    Raises:
        UserError: no usable model there.
    """
    device, dtype = run.place()
    policy: Policy = package(run.family).Policy.load(
        folder, settings(run), device=device, dtype=dtype, trainable=True, lora_r=lora_r, seed=run.seed
    )
    return policy


def scorer(run: Run, folder: Path, *, trainable: bool = False, outputs: Sequence[str] = ()) -> Scorer:
    """A reward model, or a base for one with a new head of these outputs, or of one without a name.

    Raises:
        UserError: no usable model there.
    """
    device, _ = run.place()
    found: Scorer = package(run.family).Scorer.load(
        folder, settings(run), device=device, trainable=trainable, outputs=outputs
    )
    return found


def ancestors(folder: Path) -> list[Path]:
    """The policies that led to one, oldest first, itself last: each names the one before it in previous.json."""
    chain = [folder]
    while (link := chain[0] / "previous.json").exists():
        chain.insert(0, Path(json.loads(link.read_text())["previous"]))
    return chain


def passed(folder: Path) -> Path:
    """The policy itself, or the nearest before it, that no round's gate held back."""
    for policy in reversed(ancestors(folder)):
        gate = policy / "gate.json"
        if not gate.exists() or json.loads(gate.read_text())["continue"]:
            return policy
    return folder
