"""DPO with LoRA beside TRL's DPOTrainer: samples per second, peak memory, and the same losses.

    python -m benchmarks.dpo

Same pairs, order, batches of 4 pairs, initial adapter, optimizer and number format (float32). Ours is what the stages
`reference` and `optimize` run, journal and MLflow included. TRL runs with its defaults (gradient checkpointing, the
reference priced at every step) and with its fastest settings that a CPU has (no checkpointing, reference log-probs
precomputed; `padding_free` is ignored by TRL 1.16). Ours takes a pair a forward pass and adds up the gradients of 4,
the same step with a quarter of the activations; TRL pads 4 pairs to one length and takes them at once. Loading models
and tokenizing for TRL are not counted; our own tokenizing is. One epoch is the reference pass and each pair once;
three epochs go on from there, with our reference pass and TRL's precomputed one counted once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks import _contest, _dpo, _pairs, _trl
from benchmarks._contest import Arena
from benchmarks._report import goal, spread, table
from stages.config import Run
from stages.records import Pair

RANK, EPOCHS, TRAJECTORY, LONGEST = 16, 3, 20, 512
SETTINGS: dict[str, dict[str, Any]] = {  # of TRL
    "TRL": {},
    "TRL, fastest": {**_trl.FAST, "precompute_ref_log_probs": True},
    "TRL, fastest, bf16": {**_trl.FAST, "precompute_ref_log_probs": True, "bf16": True},
}
DEFAULT = ("TRL", "TRL, fastest")
LONG = {False: ((180, 260), (8, 24)), True: ((20, 30), (2, 4))}  # words of prompt and answer; quick


def sources(chosen: argparse.Namespace) -> dict[str, Iterator[Pair]]:
    """The data sets, by name."""
    long = _pairs.made_up(*LONG[chosen.quick])
    known = {"long prompts, short answers": long}
    if chosen.quick:
        return known
    if chosen.data.exists():
        known = {f"people's pairs ({chosen.data.name})": _pairs.people(chosen.data), **known}
    else:
        print(f"{chosen.data}: no such file, made-up pairs only")
    return known


def prepare(chosen: argparse.Namespace, folder: Path, found: Iterator[Pair], count: int, longest: int) -> None:
    """Write what both sides start from."""
    from stages.policies import family

    model, run = _contest.fetch(chosen.model, folder), run_of(LONGEST)
    policy = family.load(run, model)
    pairs = _pairs.fitting(policy, found, count, longest)
    del policy
    _dpo.write(folder, model, pairs, run, RANK)


def run_of(longest: int) -> Run:
    """The node `run` of params.yaml."""
    return Run(family="text", seed=0, device="cpu", dtype="float32", policy={"max_length": longest})


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train once."""
    folder, home, run = Path(job["folder"]), Path.cwd(), run_of(LONGEST)
    chosen, model = _dpo.settings(job["epochs"], RANK), Path(job["model"])
    if job["who"] == "prefloop":
        return _dpo.ours(folder, model, run, chosen, home)
    return _dpo.theirs(folder, model, run, chosen, home, **SETTINGS[job["who"]])


def rates(told: list[dict[str, Any]], count: int, epochs: int) -> list[float]:
    """Samples per second of each run, up to the end of an epoch."""
    steps = count * epochs // _dpo.BATCH
    return [count * epochs / (run["reference"] + list(accumulate(run["steps"]))[steps - 1]) for run in told]


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """Round by round: what ran side by side."""
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]


def gap(told: dict[str, list[dict[str, Any]]], other: str) -> float:
    """The largest difference of any step's loss."""
    both = zip(told["prefloop"][0]["losses"], told[other][0]["losses"], strict=True)
    return max(abs(mine - theirs) for mine, theirs in both)


def speed(name: str, told: dict[str, list[dict[str, Any]]], count: int) -> str:
    """The figures of one data set, and the goals."""
    rows, goals = [], []
    for who, runs in told.items():
        steps = [step for run in runs for step in run["steps"]]
        one, three, peak = rates(runs, count, 1), rates(runs, count, EPOCHS), [run["peak"] for run in runs]
        rows.append([who, spread(one), spread(three), spread(steps), spread(peak)])
        if who != "prefloop":
            mine = told["prefloop"]
            against = f"against {who}"
            goals.append(goal(f"{against}, one epoch", ratios(rates(mine, count, 1), one), 2.5))
            goals.append(goal(f"{against}, three epochs", ratios(rates(mine, count, EPOCHS), three), 3.5))
            memory = ratios([run["peak"] for run in mine], peak)
            goals.append(goal(f"{against}, peak memory", memory, 0.4, at_most=True))
            goals.append(f"- {against}, largest difference of a step's loss: {gap(told, who):.1e}")
    head = ["", "samples/s, one epoch", "samples/s, three epochs", "s a step", "peak GiB"]
    return f"### {name}\n\n{table(head, rows)}\n\n" + "\n".join(goals)


def body(chosen: argparse.Namespace, arena: Arena) -> str:
    """Both data sets, then the losses of 20 steps."""
    _trl.require()
    who = ["prefloop", *DEFAULT, *(["TRL, fastest, bf16"] if chosen.bf16 else [])]
    count, sections = (_dpo.BATCH if chosen.quick else chosen.pairs), []
    for number, (name, found) in enumerate(sources(chosen).items()):
        folder = arena.folder / f"data-{number}"
        folder.mkdir()
        prepare(chosen, folder, found, count, LONGEST)
        told = arena.of(f"set-{number}").compete(jobs(chosen, folder, who, EPOCHS), chosen.repetitions)
        sections.append(speed(name, told, count))
    facts = f"{count} pairs of at most {LONGEST} tokens, batches of {_dpo.BATCH}, LoRA r = {RANK}; "
    facts += f"medians and ranges of {chosen.repetitions} run(s)."
    return "\n\n".join([facts, *sections, *([] if chosen.quick else [trajectory(chosen, arena)])])


def jobs(chosen: argparse.Namespace, folder: Path, who: list[str], epochs: int) -> dict[str, dict[str, Any]]:
    """One for each contender."""
    model = str(_contest.fetch(chosen.model, folder)) if not (folder / "model").exists() else str(folder / "model")
    return {name: {"who": name, "folder": str(folder), "model": model, "epochs": epochs} for name in who}


def trajectory(chosen: argparse.Namespace, arena: Arena) -> str:
    """Losses of 20 steps on short pairs, each pair once."""
    folder = arena.folder / "trajectory"
    folder.mkdir()
    prepare(chosen, folder, _pairs.made_up((4, 20), (2, 16)), TRAJECTORY * _dpo.BATCH, LONGEST)
    told = arena.of("steps").compete(jobs(chosen, folder, ["prefloop", "TRL"], 1), 1)
    mine, theirs = (told[who][0]["losses"] for who in ("prefloop", "TRL"))
    rows = [[str(n), f"{mine[n - 1]:.5f}", f"{theirs[n - 1]:.5f}"] for n in (1, 2, 5, 10, 15, 20)]
    line = f"Largest difference over {TRAJECTORY} steps: {gap(told, 'TRL'):.1e} (goal at most 1e-4)."
    return f"### Losses of {TRAJECTORY} steps\n\n{table(['step', 'prefloop', 'TRL'], rows)}\n\n{line}"


def main() -> None:
    """Measure, print, publish."""
    parser = _contest.arguments(__doc__)
    parser.add_argument(
        "--data", type=Path, default=_pairs.DATA, help="people's pairs, in any shape of the prepare stage"
    )
    parser.add_argument("--pairs", type=int, default=8, help="pairs of an epoch, a multiple of 4")
    parser.add_argument("--bf16", action="store_true", help="also TRL in bfloat16")
    _contest.run("benchmarks.dpo", parser, work, body)


if __name__ == "__main__":
    main()
