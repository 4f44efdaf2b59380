"""A sweep of eight betas of DPO as a user runs it: eight `dvc repro`, or eight runs of TRL's DPOTrainer.

    python -m benchmarks.beta_sweep

Ours: a workspace under git and DVC in which everything up to the preferences is there; `dvc repro` at the first beta
prices the reference and trains, at each other beta it finds that only the policy is stale. All that a user waits for
counts: DVC, imports, loading, journal, MLflow, publishing. TRL: a process for each beta that imports, loads, tokenizes,
trains and saves the adapter; with its fastest settings all runs share the files of `datasets`, where the second run
finds the reference log-probs that the first one precomputed. Runs after the first are alike: a few are measured, and
eight runs are the first and seven times the median of the others.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import _contest, _dpo, _pairs, _trl
from benchmarks._contest import ROOT, Arena
from benchmarks._report import goal, spread, table
from stages.config import Run

RANK, POINTS, LONGEST = 16, 8, 512
BETAS = (0.1, 0.05, 0.2, 0.02, 0.3, 0.5, 0.01, 1.0)
SETTINGS: dict[str, dict[str, Any]] = {
    "TRL": {},
    "TRL, fastest": {**_trl.FAST, "precompute_ref_log_probs": True},
}
CODE = ("stages", "params.yaml", "dvc.yaml", ".dvcignore", "pyproject.toml")
AHEAD = ("parts", "prepare", "generate", "label", "reward", "sft")  # stages whose outputs are laid out as they are


def run_of() -> Run:
    """The node `run` of params.yaml."""
    return Run(family="text", seed=0, device="cpu", dtype="float32", policy={"max_length": LONGEST})


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One run of TRL."""
    from datasets import load_dataset

    folder = Path(job["folder"])
    rows = load_dataset(
        "json", data_files=str(folder / "texts.jsonl"), split="train", cache_dir=str(folder / job["cache"])
    )
    model, tokenizer = _trl.load(Path(job["model"]))
    _trl.dpo(
        model,
        tokenizer,
        rows,
        adapter=folder / "adapter",
        rank=RANK,
        output=Path("trl"),
        beta=job["beta"],
        learning_rate=_dpo.RATE,
        num_train_epochs=1,
        per_device_train_batch_size=_dpo.BATCH,
        max_length=LONGEST,
        **SETTINGS[job["who"]],
    )
    model.save_pretrained("adapter")
    return {}


def copied(folder: Path, names: tuple[str, ...]) -> None:
    """Files and folders of this repository in another folder."""
    folder.mkdir()
    for name in names:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, folder / name)


class Workspace:
    """A user's checkout in which all is up to date as far as the preferences."""

    def __init__(self, arena: Arena, start: Path, model: Path) -> None:
        self.folder, self.arena = arena.folder / "workspace", arena
        copied(self.folder, CODE)
        self.choose(BETAS[0])
        self.lay_out(start, model)
        subprocess.run(["git", "init", "--quiet"], cwd=self.folder, check=True)
        self.command("-m", "dvc", "init", "--quiet")
        shutil.copy2(ROOT / ".dvc" / "config", self.folder / ".dvc" / "config")
        self.command("-m", "dvc", "commit", "--quiet", "--force", *AHEAD)
        self.command("-c", "from stages import mirror; mirror.connect()")  # the stages before have made the database

    def lay_out(self, start: Path, model: Path) -> None:
        """Outputs of the stages up to the preferences."""
        data = self.folder / "data"
        for name in ("prepare/model", "sft"):
            shutil.copytree(model, data / name)
        for name in ("prepare/encoder", "generate", "reward", "label"):
            (data / name).mkdir(parents=True)
        empty = (
            "prepare/train.jsonl",
            "prepare/test.jsonl",
            "generate/prompts.jsonl",
            "reward/none",
            "label/audit.json",
        )
        for name in (*empty, "prepare/encoder/none", "prepare/demonstrations.jsonl", "label/demonstrations.jsonl"):
            (data / name).touch()
        (data / "label" / "candidates.jsonl").touch()
        shutil.copy2(start / "pairs.jsonl", data / "label" / "preferences.jsonl")
        self.command("-m", "stages.chosen")
        (self.folder / "metrics").mkdir()
        for name in AHEAD[1:]:
            (self.folder / "metrics" / f"{name}.json").write_text("{}\n", encoding="utf-8")

    def choose(self, beta: float) -> None:
        """Write a beta into params.yaml."""
        from ruamel.yaml import YAML

        yaml, file = YAML(), self.folder / "params.yaml"
        params = yaml.load(file.read_text(encoding="utf-8"))
        params["run"] |= run_of().model_dump()
        params["optimize"] = _dpo.settings(1, RANK).model_dump(mode="json", exclude_defaults=True)
        params["optimize"]["objective"] = {"name": "dpo", "beta": beta}
        with file.open("w", encoding="utf-8") as out:
            yaml.dump(params, out)

    def command(self, *words: str) -> str:
        """A command in the workspace."""
        environment = {**self.arena.environment(), "PYTHONPATH": str(self.folder)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = [sys.executable, *words]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed\n{(done.stdout + done.stderr)[-4000:]}")
        return done.stdout

    def reproduce(self, beta: float) -> tuple[float, list[str]]:
        """Seconds until the policy of a beta is there, and the stages that ran for it."""
        self.choose(beta)
        start = time.perf_counter()
        told = self.command("-m", "dvc", "repro", "optimize")
        taken = time.perf_counter() - start
        ran = [line.split("'")[1] for line in told.splitlines() if line.startswith("Running stage")]
        return taken, ran


def whole(seconds: list[float]) -> float:
    """Eight runs, from the first and some of the others."""
    return seconds[0] + (POINTS - 1) * statistics.median(seconds[1:])


def body(chosen: argparse.Namespace, arena: Arena) -> str:
    """Runs of all contenders, a beta a round."""
    from stages.policies import family

    _trl.require()
    count, runs = (_dpo.BATCH, 2) if chosen.quick else (chosen.pairs, max(2, chosen.repetitions))
    start = arena.folder / "start"
    start.mkdir()
    model = _contest.fetch(chosen.model, start)
    found = _pairs.people(chosen.data) if chosen.data.exists() else _pairs.made_up((40, 160), (20, 80))
    pairs = _pairs.fitting(family.load(run_of(), model), found, count, LONGEST)
    _dpo.write(start, model, pairs, run_of(), RANK)
    workspace = Workspace(arena, start, model)
    ran: list[str] = []
    seconds: dict[str, list[float]] = {name: [] for name in ("prefloop", *list(SETTINGS)[chosen.quick :])}
    order = random.Random(0)
    for n, beta in enumerate(BETAS[:runs]):
        for who in order.sample(list(seconds), len(seconds)):
            if who == "prefloop":
                taken, ran = workspace.reproduce(beta)
            else:
                cache = "shared" if "fastest" in who else f"cache-{n}"
                job = {"who": who, "folder": str(start), "model": str(model), "beta": beta, "cache": cache}
                taken = arena.apart(f"{who}-{n}".replace(" ", "-"), job)["seconds"]
            seconds[who].append(taken)
            print(f"{who}, beta {beta}: {taken:.0f} s", file=sys.stderr, flush=True)
    rows = [[who, f"{one[0]:.1f}", spread(one[1:], 1), f"{whole(one):.0f}"] for who, one in seconds.items()]
    goals = [
        goal(f"against {who}", [whole(seconds[who]) / whole(seconds["prefloop"])], 3.0)
        for who in seconds
        if who != "prefloop"
    ]
    head = f"{count} pairs, one epoch, batches of {_dpo.BATCH}, LoRA r = {RANK}; {runs} runs measured. "
    head += f"Stages that ran at the last beta: {', '.join(ran)}."
    made = table(["", "first run, s", "each other run, s", "eight runs, s"], rows)
    return f"{head}\n\n{made}\n\n" + "\n".join(goals)


def main() -> None:
    """Measure, print, publish."""
    parser = _contest.arguments(__doc__)
    parser.add_argument(
        "--data", type=Path, default=_pairs.DATA, help="people's pairs, in any shape of the prepare stage"
    )
    parser.add_argument("--pairs", type=int, default=24, help="pairs of an epoch, a multiple of 4")
    parser.set_defaults(repetitions=2)
    _contest.run("benchmarks.beta_sweep", parser, work, body, packages=("torch", "transformers", "peft", "trl", "dvc"))


if __name__ == "__main__":
    main()
