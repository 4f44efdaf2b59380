"""MLflow as a mirror of the journals: deliver what waits, each event once, without ever stopping a stage.

A kill between a delivery and the cursor repeats that event, which changes nothing: see replay.py.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages import replay
from stages.outbox import ROOT, Event, Outbox
from stages.parts import ROOT as CODE

LOG = logging.getLogger("prefloop")
EVERY = 3.0  # seconds between two deliveries
PAUSE = 60.0  # seconds until a server that did not answer is asked again
WAIT = 3  # seconds that a server has to answer at all
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS")


def uri() -> str:
    """The tracking URI: of the environment, else a database beside params.yaml."""
    return os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"


def connect() -> Any:
    """A client of the tracking server, or an error within seconds.

    Raises:
        OSError: nobody answers.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output belongs to the stage
    where = urlsplit(uri())
    if where.scheme in ("http", "https"):
        try:
            urllib.request.urlopen(uri(), timeout=WAIT).close()  # goes by the proxies of the environment
        except urllib.error.HTTPError:
            pass  # an answer, if not a kind one
    elif where.hostname and where.port:  # a database server, which MLflow itself would try for minutes
        socket.create_connection((where.hostname, where.port), timeout=WAIT).close()
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri(), registry_uri=uri())


class Sender:
    """Delivers an outbox now and then; one warning where MLflow does not take it."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox, self._next, self._warned = outbox, 0.0, False

    def send(self, *, now: bool = False) -> None:
        """Deliver what waits, unless that was just done or tried."""
        if not now and time.monotonic() < self._next:
            return
        reason = send(self.outbox)
        self._next = time.monotonic() + (PAUSE if reason else EVERY)
        if reason and not self._warned:
            self._warned = True
            LOG.warning("MLflow at %s does not take the journal, a later run delivers it (%s)", uri(), reason)

    def end(self) -> None:
        """Deliver the rest."""
        self.send(now=True)


class Courier:
    """A sender in a process of its own: the stage neither imports MLflow nor waits for it before its end."""

    def __init__(self, outbox: Outbox, root: Path) -> None:
        command = [sys.executable, "-m", "stages.mirror", str(root), outbox.folder.name]
        code = os.pathsep.join(filter(None, (str(CODE), os.environ.get("PYTHONPATH"))))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: the stage has the last word
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": code})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._next = 0.0

    def send(self, *, now: bool = False) -> None:
        """Ask for a delivery."""
        if now or time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY
            self._tell("now" if now else "soon")

    def end(self) -> None:
        """Wait until the rest is delivered, or could not be."""
        self._tell("end")
        with suppress(BrokenPipeError):
            self._process.communicate()

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it was killed: a later run delivers
            self._process.stdin.write(f"{word}\n".encode())
            self._process.stdin.flush()


def follow(root: Path, name: str) -> None:
    """What a courier does: deliver what earlier processes could not, then this outbox whenever it is told to."""
    deliver(root, but=name)
    sender = Sender(Outbox(root / name))
    for line in sys.stdin:
        sender.send(now=line.strip() != "soon")
        if line.strip() == "end":
            return
    sender.end()  # the stage was killed


def send(outbox: Outbox) -> str:
    """Deliver all that waits in an outbox. Returns "" or, in one line, why not."""
    if not outbox.behind:
        return ""
    with outbox.turn():
        return _send(outbox)


def _send(outbox: Outbox) -> str:
    try:
        client = connect()
        _find_run(client, outbox)
        for events, cursor in _batches(outbox):
            try:
                getattr(replay, events[0]["kind"])(client, outbox, events)
            except Exception as error:
                if events[0]["kind"] == "start" or not _refused(error):  # without its run nothing has a place
                    raise
                if not outbox.state["refused"]:
                    LOG.warning("MLflow refused a %s event of %s: %s", events[0]["kind"], outbox.folder, _line(error))
                outbox.save(refused=outbox.state["refused"] + 1)
            outbox.save(cursor=cursor)
            for event in events:
                shutil.rmtree(outbox.folder / event.get("kept", "no files"), ignore_errors=True)
    except Exception as error:  # whatever ails MLflow must not stop a training that has run for days
        return _line(error)
    return ""


def deliver(root: Path = ROOT, *, but: str = "") -> int:
    """Deliver what earlier processes could not, oldest first; outboxes of living processes are left to them.

    Args:
        root: where the outboxes lie.
        but: name of one that is left alone.

    Returns:
        the number of outboxes of which something still waits.
    """
    boxes = [Outbox(record.parent) for record in root.glob("*/run.json") if record.parent.name != but]
    late, reason = 0, ""
    for outbox in sorted(boxes, key=lambda box: box.events.stat().st_ctime if box.events.is_file() else 0):
        if not outbox.claim():
            continue
        with outbox.turn():
            if outbox.state["status"] == "RUNNING":  # its process is gone and has not said how it ended
                outbox.add("status", _now(outbox), status="KILLED")
                outbox.save(status="KILLED")
        reason = reason or send(outbox)
        late += outbox.behind
        if outbox.spent:
            outbox.remove()
        outbox.release()
    return late


def _now(outbox: Outbox) -> int:
    """When a killed process last wrote, in milliseconds."""
    return int(outbox.events.stat().st_mtime * 1000) if outbox.events.is_file() else 0


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _refused(error: Exception) -> bool:
    """Whether sending it again would end the same."""
    return isinstance(error, FileNotFoundError) or getattr(error, "error_code", "") in REFUSALS


def _batches(outbox: Outbox) -> Iterator[tuple[list[Event], int]]:
    """Events one by one, but runs of metric events joined up to what one request takes."""
    joined: list[Event] = []
    behind, size = 0, 0
    for event, cursor in outbox.waiting():
        if joined and (event["kind"] != "metrics" or size + len(event["values"]) > replay.MANY):
            yield joined, behind
            joined, size = [], 0
        if event["kind"] != "metrics":
            yield [event], cursor
            continue
        joined.append(event)
        behind, size = cursor, size + len(event["values"])
    if joined:
        yield joined, behind


def _find_run(client: Any, outbox: Outbox) -> None:
    """Start over where this MLflow does not know the run: another store than last time, or a deleted one."""
    from mlflow.exceptions import MlflowException

    if outbox.checked or not outbox.state["run_id"]:
        return
    try:
        client.get_run(outbox.state["run_id"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        outbox.save(run_id="", cursor=0)
    outbox.checked = True


if __name__ == "__main__":
    follow(Path(sys.argv[1]), sys.argv[2])
