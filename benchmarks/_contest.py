"""Contenders in processes of their own: same job, random order, peak memory of each.

A benchmark defines `work(job)`, which does one job and tells what it measured, and `body(chosen, folder)`, which sends
jobs out with `compete` and makes the section of RESULTS.md. `run` is its command. A job is a dict that JSON can hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import _report
from stages.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
MODEL = "smollm2-135m-instruct"
TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


@dataclass(frozen=True)
class Arena:
    """Where contenders work, and as what."""

    module: str  # `python -m module` is the benchmark
    folder: Path
    threads: int
    store: Path | None = None  # where the database of runs is, if not in the folder

    def of(self, name: str) -> Arena:
        """A part of it, for contenders of the same names."""
        return replace(self, folder=self.folder / name, store=self.store or self.folder)

    def apart(self, name: str, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job in a process of its own; what it told, with its seconds and its peak memory in GiB."""
        home = self.folder / name
        home.mkdir(parents=True)
        (home / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", self.module, "--job", str(home / "job.json")]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=home, env=self.environment(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.module}: '{name}' failed\n{(done.stdout + done.stderr)[-4000:]}")
        told = json.loads((home / "told.json").read_text(encoding="utf-8"))
        return {"seconds": time.perf_counter() - start, **told}

    def compete(self, jobs: dict[str, dict[str, Any]], repetitions: int) -> dict[str, list[dict[str, Any]]]:
        """Every job several times; a round takes all of them in a random order, so that a busy machine slows all."""
        order = random.Random(0)
        told: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
        for n in range(repetitions):
            for name in order.sample(list(jobs), len(jobs)):
                told[name].append(self.apart(f"{name} {n}".replace(" ", "-"), jobs[name]))
                print(f"{name}: {told[name][-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
        return told

    def environment(self) -> dict[str, str]:
        """That of this process, with this repository's code, one database of runs and a stated number of threads."""
        return {
            **os.environ,
            **TELEMETRY_OFF,
            "OMP_NUM_THREADS": str(self.threads),
            "PYTHONPATH": str(ROOT),
            "MLFLOW_TRACKING_URI": f"sqlite:///{(self.store or self.folder) / 'mlflow.db'}",
            "HF_DATASETS_CACHE": str(self.folder / "datasets"),
        }


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few repetitions: does it run?")
    parser.add_argument("--model", help=f"a name of stages/prepare/models.py, a folder or a hub id (default {MODEL})")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=_report.RESULTS)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser


def run(
    module: str,
    parser: argparse.ArgumentParser,
    work: Callable[[dict[str, Any]], dict[str, Any]],
    body: Callable[[argparse.Namespace, Arena], str],
    packages: tuple[str, ...] = ("torch", "transformers", "peft", "trl"),
) -> None:
    """The command of a benchmark: do one job, or measure, print and publish."""
    chosen = parser.parse_args()
    try:
        if chosen.job:
            answer(chosen.job, work)
            return
        if chosen.quick:
            chosen.repetitions = min(chosen.repetitions, 1)
        chosen.model = chosen.model or ("tiny" if chosen.quick else MODEL)
        with TemporaryDirectory() as folder:
            made = body(chosen, Arena(module, Path(folder).resolve(), chosen.threads))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    given = " ".join(sys.argv[1:])
    head = f"`python -m {module} {given}`".replace(" `", "`")
    made = f"{head}\n\n{_report.machine(packages, chosen.threads)}\n\n{made}"
    print(made)
    _report.publish(module.rpartition(".")[2], made, chosen.results)


def answer(file: Path, work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Do the job of a file and write what it told beside it."""
    from stages.entry import quiet_libraries, set_seed

    quiet_libraries()
    set_seed(0)
    told = work(json.loads(file.read_text(encoding="utf-8")))
    told = {"peak": peak(), **told}
    file.with_name("told.json").write_text(json.dumps(told), encoding="utf-8")


def peak() -> float:
    """The most memory that this process has held, in GiB.

    Linux lets a child inherit its parent's figure in `getrusage`, not in /proc.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**30 if sys.platform == "darwin" else 2**20)


@contextmanager
def timed(seconds: list[float]):
    """Append the seconds of a block."""
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def fetch(name: str, folder: Path) -> Path:
    """A model's folder: as it is if it is one, else made as the prepare stage makes it; the large ones are kept.

    Raises:
        UserError: no such model.
    """
    from stages.prepare import models

    if Path(name).is_dir():
        return Path(name).resolve()
    if name in models.BUILT:
        made = folder / "model"
        models.fetch(name, made, where="--model")
        return made
    kept = ROOT / ".scratch" / "benchmarks" / name.replace("/", "--")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as fresh:
            models.fetch(name, Path(fresh) / "model", where="--model")
            (Path(fresh) / "model").rename(kept)
    return kept
