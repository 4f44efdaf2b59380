"""What is paid before any work: the start of each stage, and a `dvc repro` with nothing to do.

    python -m benchmarks.startup

A stage's start is a process that imports its module; what one imports beside that at work (a model's code,
transformers, peft) has a row of its own, and so has MLflow, which a process beside the stage imports. `dvc repro` runs
in a fresh workspace in which the tiny recipe has run once.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import _contest
from benchmarks._contest import ROOT, Arena
from benchmarks._report import spread, table

STAGES = ("prepare", "generate", "label", "reward", "sft", "reference", "optimize", "selfplay", "evaluate")
WORK = "import stages.policies.text.policy, stages.journal, transformers.models.llama.modeling_llama, peft"
BESIDE = "from mlflow import MlflowClient"
PYTHON = {"python alone": "pass", "what stages use at work": WORK, "what delivers their journals, beside them": BESIDE}


def seconds(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Those of a command."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def commands(stages: tuple[str, ...]) -> dict[str, list[str]]:
    """What is timed in a checkout, by name."""
    found = {name: [sys.executable, "-c", code] for name, code in PYTHON.items()}
    for stage in stages:
        found[f"import of stages.{stage}.run"] = [sys.executable, "-c", f"import stages.{stage}.run"]
    found["python -m stages.chosen"] = [sys.executable, "-m", "stages.chosen"]
    return found


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Nothing is done apart here."""
    return {}


def workspace(folder: Path, environment: dict[str, str]) -> Path:
    """A checkout in which the tiny recipe has run once."""
    from benchmarks.beta_sweep import CODE, copied
    from flows import recipes

    copied(folder, (*CODE, "flows"))
    params = recipes.apply(recipes.read(ROOT / "params.yaml"), recipes.load("tiny"))
    recipes.write(folder / "params.yaml", params)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    for words in (("init", "--quiet"), ("repro", "--quiet")):
        seconds([sys.executable, "-m", "dvc", *words], folder, environment)
    return folder


def body(chosen: argparse.Namespace, arena: Arena) -> str:
    """Imports of every stage, and the graph with nothing to do."""
    environment = {**arena.environment(), "PYTHONPATH": str(ROOT)}
    timed, folder = commands(("optimize",) if chosen.quick else STAGES), ROOT
    repro: dict[str, list[str]] = {}
    if not chosen.quick:
        made = arena.folder / "workspace"
        environment |= {"PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "PYTHONPATH": str(made)}
        folder = workspace(made, environment)
        repro = {"dvc repro, nothing to do": [sys.executable, "-m", "dvc", "repro", "--quiet"]}
    every, order = {**timed, **repro}, random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(chosen.repetitions):
        for name in order.sample(list(every), len(every)):
            taken[name].append(seconds(every[name], folder, environment))
    made_of = table(["", "seconds"], [[name, spread(told)] for name, told in taken.items()])
    return f"Medians and ranges of {chosen.repetitions} run(s).\n\n{made_of}"


def main() -> None:
    """Measure, print, publish."""
    parser = _contest.arguments(__doc__)
    parser.set_defaults(repetitions=5)
    _contest.run("benchmarks.startup", parser, work, body, packages=("torch", "transformers", "dvc"))


if __name__ == "__main__":
    main()
