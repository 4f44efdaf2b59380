"""What the reference stage computes once: log-probs by item, what a policy remembers, and what both came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages import files
from stages.batches import Item
from stages.config import Config
from stages.errors import UserError

if TYPE_CHECKING:
    from stages.policies.family import Policy


class Cache(dict[str, Tensor]):
    """Per-step log-probs `[t]` of the reference, by item id, with what they were computed from."""

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """One flat tensor and the lengths: a file of numbers and names."""
        lengths = {name: len(values) for name, values in self.items()}
        flat = torch.cat(list(self.values())) if self else torch.zeros(0)
        files.save_tensors(path, {"logps": flat}, {"lengths": lengths, **facts})

    def of(self, item: Item) -> Tensor:
        """The log-probs `[t]` of an item.

        Raises:
            UserError: its draw is not among the cached ones.
        """
        if item.id not in self:
            mend = "set reference.draws to the number of epochs, and reference.revisions where answers are revised"
            where = "data/reference"
            raise UserError(f"no reference log-probs of '{item.id}'", where=where, mend=mend)
        return self[item.id]

    @classmethod
    def load(cls, path: Path, facts: dict[str, str]) -> Cache:
        """Read a cache, refusing one that was computed from something else.

        Raises:
            UserError: a fact (reference weights, preferences, length limit) differs.
        """
        tensors, held = checked(path, facts)
        lengths = held["lengths"]
        return cls(zip(lengths, tensors["logps"].split(list(lengths.values()))))


def checked(path: Path, facts: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read saved tensors, refusing what was computed from something else.

    Raises:
        UserError: a fact (reference weights, preferences, length limit) differs.
    """
    tensors, held = files.load_tensors(path)
    for name, value in facts.items():
        if held.get(name) != value:
            what = f"was computed with another {name} ({held.get(name)}, now {value})"
            raise UserError(what, where=str(path), mend="rerun the reference stage: dvc repro -s -f reference")
    return tensors, held


def facts(policy: Path, labels: Path, settings: Config) -> dict[str, str]:
    """What reference log-probs depend on: a cache of anything else is refused."""
    told = {f"policy {name}": str(value) for name, value in settings.model_dump().items()}
    return {"reference": files.digest(policy), "preferences": files.digest(labels), **told}


def remember(policy: Policy, folder: Path, facts: dict[str, str]) -> None:
    """Write what a policy computed once and others of the same base may use: a file for each of its memories."""
    for name, known in memories(policy).items():
        rows = list(known.values())
        tensors = {part: torch.stack([row[part] for row in rows]) for part in (rows[0] if rows else ())}
        if tensors:
            files.save_tensors(folder / f"{name}.safetensors", tensors, {"keys": list(known), **facts})


def recall(policy: Policy, folder: Path, facts: dict[str, str]) -> None:
    """Let a policy start from what another one remembered.

    Raises:
        UserError: that was computed from something else.
    """
    for name, known in memories(policy).items():
        path = folder / f"{name}.safetensors"
        if path.exists():
            tensors, held = checked(path, facts)
            for i, key in enumerate(held["keys"]):
                known.keep(key, {part: values[i] for part, values in tensors.items()})


def memories(policy: Policy) -> dict[str, Any]:
    """What a family that has such things remembers, by name; nothing else needs a `memory`."""
    return policy.memory() if hasattr(policy, "memory") else {}
