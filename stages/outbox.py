"""What waits for MLflow: every event of a journal in the order it happened, and how far MLflow has them.

An outbox is a folder `.scratch/journal/<stage>-<id>` with `events.jsonl` (appended to), `files/` (what the events
upload) and `run.json` (run id, cursor, status). It outlives the stage's own scratch folder, so that what an
unreachable MLflow missed can be delivered by a later process.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages import lineage
from stages.errors import UserError

Event = dict[str, Any]
ROOT = Path(".scratch/journal")
COPIED = 2**20  # bytes up to which a kept file is copied; larger ones are hard-linked where the disk can


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of a full disk which file could not be written.

    Raises:
        UserError: no space, or no quota, is left.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        mend = "free some space and run again: the stage resumes from its last checkpoint"
        raise UserError("no space left on the disk", where=str(path), mend=mend) from None


def append(path: Path, row: Event) -> None:
    """Append one JSON line; the keys are in the order given."""
    with writing(path), path.open("a", encoding="utf-8") as out:
        out.write(json.dumps(row) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(path.name + ".new")
    with writing(path):
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)


def trim(path: Path) -> None:
    """Cut off a last line that a kill left unfinished."""
    if path.is_file():
        whole = path.read_bytes().rfind(b"\n") + 1
        if whole < path.stat().st_size:
            os.truncate(path, whole)


class Outbox:
    """The events of one journal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events = folder / "events.jsonl"
        self.checked = False  # whether this process has seen that MLflow knows the run
        self._lock: Any = None
        self.state: Event = {"run_id": "", "cursor": 0, "status": "RUNNING", "source": "", "refused": 0}
        self.reload()

    def reload(self) -> None:
        """Take the state as another process left it."""
        record = self.folder / "run.json"
        if record.is_file():
            self.state |= json.loads(record.read_text(encoding="utf-8"))

    def claim(self) -> bool:
        """Take the outbox for this process; the system lets go of it when the process dies, however it dies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        trim(self.events)
        return True

    def release(self) -> None:
        """Let another process deliver."""
        self._lock.close()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other process delivers or changes the state, and take it as they left it."""
        with (self.folder / "turn").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            self.reload()
            yield

    def save(self, **changes: Any) -> None:
        """Change the state on disk. The run id is also kept in the stage's own folder, beside its checkpoint."""
        self.state |= changes
        replace(self.folder / "run.json", json.dumps(self.state))
        source = Path(self.state["source"])
        if "run_id" in changes and source.is_dir():
            replace(source / "run.json", json.dumps({"journal": self.folder.name, "run_id": self.state["run_id"]}))

    def add(self, kind: str, time: int, **facts: Any) -> None:
        """Append one event."""
        append(self.events, {"kind": kind, "time": time, **facts})

    def keep(self, paths: dict[str, Path]) -> str:
        """Set files aside for upload under the names given, since the stage may move them. Returns the folder."""
        number = self.events.stat().st_size if self.events.is_file() else 0  # no other event will start there
        shutil.rmtree(self.folder / "files" / str(number), ignore_errors=True)  # left by a kill before the event
        for name, path in paths.items():
            target = self.folder / "files" / str(number) / name
            with writing(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target)
        return f"files/{number}"

    def waiting(self) -> Iterator[tuple[Event, int]]:
        """Each event that MLflow does not have, with the cursor that stands behind it."""
        if not self.events.is_file():
            return
        cursor = self.state["cursor"]
        with self.events.open("rb") as lines:
            lines.seek(cursor)
            for line in lines:
                cursor += len(line)
                yield json.loads(line), cursor

    def points(self) -> Iterator[tuple[int, str]]:
        """Step and name of each metric that was ever written here."""
        for line in self.events.read_text("utf-8").splitlines() if self.events.is_file() else ():
            event = json.loads(line)
            for name in event["values"] if event["kind"] == "metrics" else ():
                yield event["step"], name

    @property
    def behind(self) -> bool:
        """Whether anything waits."""
        return self.events.is_file() and self.events.stat().st_size > self.state["cursor"]

    @property
    def spent(self) -> bool:
        """Whether nobody needs it: all is delivered and no stage can resume it."""
        return not self.behind and not (Path(self.state["source"]) / "run.json").is_file()

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)


def _link(path: Path, target: Path) -> None:
    if lineage.size(path) > COPIED:
        try:
            os.link(path, target)
            return
        except OSError:
            pass  # another disk, or one without hard links
    shutil.copyfile(path, target)
