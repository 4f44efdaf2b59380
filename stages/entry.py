"""What `python -m stages.<name>` does around a stage's `run`: check, work in scratch, publish, fail in one line."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from stages import files
from stages.config import AnyConfig, Run, load
from stages.errors import UserError

if TYPE_CHECKING:
    from stages.journal import Journal


@dataclass(frozen=True)
class Job(Generic[AnyConfig]):
    """What a stage is handed."""

    config: AnyConfig
    inputs: dict[str, Path]
    scratch: Path  # survives a kill; found again by the run that would repeat this one
    out: Path  # becomes the published output
    journal: Journal


@dataclass(frozen=True)
class Stage(Generic[AnyConfig]):
    """A node of the graph. `run` returns the summary that becomes metrics/<name>.json."""

    name: str
    schema: type[AnyConfig]
    run: Callable[[Job[AnyConfig]], dict[str, float]]
    inputs: Callable[[AnyConfig], dict[str, Path]]  # name -> path, as in dvc.yaml
    output: Path
    check: Callable[[AnyConfig], Any] = lambda config: None  # everything that can be refused before a model is loaded


def main(stage: Stage[AnyConfig]) -> None:
    """Run a stage as a command: exit code 0, or 2 with one line for a user's mistake."""
    try:
        execute(stage)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        mend = "free some space and run again: work goes on from the last checkpoint"
        print(f"error: {error.filename or files.SCRATCH}: the disk is full; {mend}", file=sys.stderr)
        sys.exit(2)


def execute(stage: Stage[AnyConfig], *, apart: bool = True) -> None:
    """Check, run in scratch, publish.

    Args:
        stage: what to run, in the working folder.
        apart: a process of its own delivers to MLflow; this one does where many stages run in it, one after another.
    """
    quiet_libraries()
    config = load(stage.schema)
    stage.check(config)
    inputs = stage.inputs(config)
    resolved = config.model_dump(mode="json")
    scratch = files.scratch(stage.name, resolved, inputs)
    out = scratch / "out"
    out.mkdir(exist_ok=True)
    from stages.journal import Journal

    journal = Journal(
        stage=stage.name.replace("/", "-"),
        folder=scratch / "journal",
        config=resolved,
        inputs={str(path): path for path in inputs.values()},
        apart=apart,
    )
    set_seed(getattr(config, "run", Run()).seed)
    try:
        summary = stage.run(Job(config, inputs, scratch, out, journal))
    except BaseException as error:
        journal.close("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    files.write_json(out / "settings.json", resolved)
    if journal.metrics.is_file() and journal.metrics.stat().st_size:
        shutil.copyfile(journal.metrics, out / "metrics.jsonl")
        write_curves(journal.metrics, out / "curves.csv")
    files.write_json(Path("metrics") / f"{stage.name.replace('/', '-')}.json", dict(sorted(summary.items())))
    files.publish(out, stage.output)
    journal.summary(summary)
    journal.close()
    for other in scratch.parent.iterdir():  # this one, and what older settings left half done
        shutil.rmtree(other, ignore_errors=True)


def write_curves(metrics: Path, table: Path) -> None:
    """The step metrics as a table that `dvc plots` reads, one column a metric."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    with table.open("w", encoding="utf-8", newline="") as out:
        written = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        written.writeheader()
        written.writerows(rows)


def quiet_libraries() -> None:
    """No telemetry, no stray progress bars, no look-ups at a hub for what lies in a folder."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def set_seed(seed: int) -> None:
    """The same numbers on every run of this machine: the global generator is for what has no seed of its own."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
