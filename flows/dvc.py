"""The only code that talks to DVC, always through its command line.

DVC decides whether a stage runs. A held lock is waited for, and no process is left behind when the caller is cancelled,
fails or is killed (`flows/guard.py`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from flows import recipes
from stages.errors import UserError

Report = Callable[[str], None]
GUARD = Path(__file__).resolve().parent / "guard.py"
LOCKED = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")
TORN = re.compile(r"Unable to read RWLock-file")
ADVICE = re.compile(
    r"^\s*$|To track the changes with git|^\tgit add |To enable auto staging|^\tdvc config|Use `dvc push`"
)
HALF_WAY = re.compile(r"(?<!100)%\|")  # a progress bar that is not yet full
FAILED = re.compile(r"failed to reproduce '(?P<stage>[^']+)'.*exited with (?P<code>\d+)")
NODE = re.compile(r'"(?P<name>[^"]+)";')
EDGE = re.compile(r'"(?P<before>[^"]+)" -> "(?P<after>[^"]+)";')
PATIENCE = 600.0  # seconds to wait for a lock


class DvcError(RuntimeError):
    """DVC, or a stage that it ran, failed for another reason than a user's mistake."""


def silent(line: str) -> None:
    """Report nothing."""


def run(
    root: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    report: Report = silent,
    patience: float = PATIENCE,
) -> list[str]:
    """Run `dvc ARGUMENTS` in `root` and return its lines of output, each reported as it comes.

    Raises:
        UserError: a stage ended with exit code 2 (its own line is passed on), or there is no DVC project.
        DvcError: it failed otherwise, or the lock was still held after `patience` seconds.
    """
    end, pause = time.monotonic() + patience, 0.5
    while True:
        code, lines = _attempt(root, arguments, env or {}, report)
        if code == 0:
            return lines
        torn = root / ".dvc" / "tmp" / "rwlock"
        if torn.exists() and any(TORN.search(line) for line in lines):  # a kill cut off the list of who holds what
            torn.unlink()
            continue
        if not any(LOCKED.search(line) for line in lines):
            raise failure(arguments, lines)
        if time.monotonic() + pause > end:
            raise DvcError(
                f"the DVC lock of {root} was held for {patience:.0f} s: is another `dvc repro` running there?"
            )
        report(f"DVC's lock is held; trying again in {pause:.0f} s")
        time.sleep(pause)
        pause = min(2 * pause, 30.0)


def _attempt(root: Path, arguments: tuple[str, ...], env: Mapping[str, str], report: Report) -> tuple[int, list[str]]:
    command = [sys.executable, "-P", str(GUARD), sys.executable, "-m", "dvc", *arguments]
    binaries = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    process = subprocess.Popen(
        command,
        cwd=root,
        env={**os.environ, "PATH": binaries, "PYTHONUNBUFFERED": "1", **env},  # the stages' `python` is this one
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # one pipe, so that a stage's last line stands before DVC's own
        text=True,
        errors="replace",
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            report(lines[-1])
        return process.wait(), lines
    finally:  # closing stdin tells the guard to end everything; when all has ended it does nothing
        process.stdin.close()
        process.wait()
        process.stdout.close()


def failure(arguments: tuple[str, ...], lines: list[str]) -> UserError | DvcError:
    """Make of a failed command's output the error that its user should see.

    >>> lines = ["error: params.yaml: beta = -1; use more", "ERROR: failed to reproduce 'optimize': ... exited with 2"]
    >>> print(failure(("repro",), lines))
    params.yaml: beta = -1; use more
    """
    said = [line for line in lines if line.strip()]
    for number, line in enumerate(said):
        found = FAILED.search(line)
        if found and found["code"] == "2" and number:
            return _user_error(said[number - 1], found["stage"])
        if found:
            tail = " | ".join(said[max(0, number - 3) : number])
            return DvcError(f"stage {found['stage']} failed with exit code {found['code']}: {tail}")
        if "not inside of a DVC repository" in line:
            return UserError("no DVC project here", where=str(Path.cwd()), mend="go to the folder of dvc.yaml")
    return DvcError(f"dvc {' '.join(arguments)} failed: {' | '.join(said[-3:])}")


def _user_error(line: str, stage: str) -> UserError:
    """Take a stage's line `where: what; mend` apart again."""
    where, colon, rest = line.removeprefix("error: ").partition(": ")
    what, semicolon, mend = rest.rpartition("; ")
    if colon and semicolon:
        return UserError(what, where=where, mend=mend)
    return UserError(line, where=f"stage {stage}", mend="see its output")


def stages(root: Path) -> list[str]:
    """Names of all stages, each after those it needs, and otherwise as they stand in dvc.yaml.

    Which stage another needs may hang on the params: images are sampled from `sft`, text from `prepare`.
    """
    graph = run(root, "dag", "--dot")
    needs: dict[str, list[str]] = {node["name"]: [] for node in filter(None, map(NODE.fullmatch, graph))}
    for edge in filter(None, map(EDGE.fullmatch, graph)):
        needs[edge["after"]].append(edge["before"])
    ordered: dict[str, None] = {}

    def place(name: str) -> None:
        for before in needs[name]:
            place(before)
        ordered[name] = None  # a second time changes nothing

    for name in needs:
        place(name)
    return list(ordered)


def status(root: Path) -> dict[str, object]:
    """What is out of date, by stage; empty where nothing is."""
    return json.loads(run(root, "status", "--json")[-1])


def repro(
    root: Path,
    stage: str,
    *,
    single: bool = True,
    env: Mapping[str, str] | None = None,
    report: Report = silent,
    patience: float = PATIENCE,
) -> bool:
    """Reproduce a stage, with `single` not those before it; return whether it ran (or else was up to date)."""
    arguments = ("repro", *(["--single-item"] if single else []), stage)

    def essential(line: str) -> None:
        if not ADVICE.search(line) and not HALF_WAY.search(line):
            report(line)

    lines = run(root, *arguments, env=env, report=essential, patience=patience)
    return any(line.startswith("Running stage ") for line in lines)


def remote(root: Path) -> bool:
    """Whether a remote is configured."""
    return bool(run(root, "remote", "list"))


def pull(root: Path, report: Report = silent) -> None:
    """Fetch what the remote has of the results of this and former runs; nothing where there is no remote."""
    if remote(root):
        run(root, "pull", "--run-cache", "--allow-missing", report=report)


def push(root: Path, report: Report = silent) -> None:
    """Send results and their run-cache to the remote; nothing where there is no remote."""
    if remote(root):
        run(root, "push", "--run-cache", report=report)


def forget_lost(root: Path) -> None:
    """Take the stages out of dvc.lock whose results are neither here nor in the cache.

    DVC takes such an entry for the run that it wants back and, for want of its results, runs the stage, though the
    run-cache may hold another run of it. A lock that was committed elsewhere, by a machine whose results differ in
    their last digits, would so cost every experiment the first stages anew.
    """
    file, objects = root / "dvc.lock", cache(root) / "files" / "md5"
    if not file.exists():
        return
    lock = recipes.read(file)
    for name, stage in list(lock.get("stages", {}).items()):
        outs = {root / out["path"]: objects / out["md5"][:2] / out["md5"][2:] for out in stage.get("outs", [])}
        if not all(here.exists() or kept.exists() for here, kept in outs.items()):
            del lock["stages"][name]
    recipes.write(file, lock)


def experiments(root: Path) -> list[str]:
    """Names of the experiments saved on the present commit."""
    return [name for name in run(root, "experiments", "list", "--name-only") if name]


def save(root: Path, name: str, env: Mapping[str, str]) -> None:
    """Save the workspace in `root` as the experiment `name`, in place of an older one; git reads its author in env."""
    run(root, "experiments", "save", "--force", "--name", name, env=env)


def share_cache(root: Path, cache: Path) -> None:
    """Let the project in `root` keep its data in another project's cache."""
    run(root, "cache", "dir", "--local", str(cache))


def cache(root: Path) -> Path:
    """Absolute path of a project's cache."""
    return Path((root / run(root, "cache", "dir")[-1]).resolve())
