"""What rewards declare about themselves, by the key of their scores, and the file that later stages know it from."""

from __future__ import annotations

import json
from pathlib import Path

from stages import files
from stages.errors import UserError
from stages.panel import Panel, seats
from stages.parts import Spec

FILE = Path("data/label/rewards.json")


def of(panel: Panel, *, where: str = "params.yaml label") -> dict[str, Spec]:
    """What each reward of a panel declares, by the key that its scores are known by."""
    return {seat.key: seat.part.spec for seat in seats(panel, "reward", where=where)}


def write(path: Path, rewards: dict[str, Spec]) -> None:
    """Put down what those who scored declare."""
    told = {key: {"range": s.range, "higher": s.higher, "needs": s.needs} for key, s in rewards.items()}
    files.write_json(path, told)


def read(path: Path) -> dict[str, Spec]:
    """What was put down, by the key of the reward.

    Raises:
        UserError: nobody put it down.
    """
    if not path.exists():
        raise UserError("no such file", where=str(path), mend="run the label stage, which writes it")
    told = json.loads(path.read_text(encoding="utf-8"))
    return {
        key: Spec(range=tuple(one["range"]), higher=one["higher"], needs=tuple(one["needs"]))
        for key, one in told.items()
    }
