"""Sampling K answers of each prompt beside `model.generate` and transformers' continuous batching.

    python -m benchmarks.sampling

Same prompts, temperature and nucleus, float32. All answers reach the limit in the first table, so that all contenders
draw the same number of tokens; in the second they end where they end. Every contender draws a few tokens to warm up.
Greedy answers of prefloop and of `generate` are compared token by token: they part only where two tokens are as likely
to the rounding of float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import _contest
from benchmarks._contest import Arena
from benchmarks._report import goal, spread, table


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Draw once with a contender; where answers end, also the greedy ones, to compare."""
    from benchmarks import _decode

    contender = _decode.CONTENDERS[job["who"]](Path(job["model"]), job["endless"])
    prompts = _decode.asked(job["prompts"])
    contender.draw(prompts, job["k"], 2, 0)
    start = time.perf_counter()
    drawn = contender.draw(prompts, job["k"], job["tokens"], job["seed"])
    taken = time.perf_counter() - start
    held = _contest.peak()
    greedy = [] if job["endless"] else contender.draw(prompts, 1, job["tokens"], 0, greedy=True)
    return {"taken": taken, "tokens": sum(map(len, drawn)), "peak": held, "greedy": greedy}


def speed(name: str, told: dict[str, list[dict[str, Any]]]) -> str:
    """The figures of one way to end, and the goal against the faster peer."""
    rates = {who: [run["tokens"] / run["taken"] for run in runs] for who, runs in told.items()}
    rows = [
        [
            who,
            spread(rates[who], 0),
            spread([run["taken"] for run in runs], 1),
            f"{statistics.median(run['tokens'] for run in runs):.0f}",
            spread([run["peak"] for run in runs]),
        ]
        for who, runs in told.items()
    ]
    goals = [
        goal(f"tokens/s against {who}", [a / b for a, b in zip(rates["prefloop"], theirs, strict=True)], 2.5)
        for who, theirs in rates.items()
        if who != "prefloop"
    ]
    made = table(["", "tokens/s", "seconds", "tokens", "peak GiB"], rows)
    return f"### {name}\n\n{made}\n\n" + "\n".join(goals)


def parity(told: dict[str, list[dict[str, Any]]]) -> str:
    """How many greedy answers are the same, and how long the others stay so."""
    ours, theirs = (told[who][0]["greedy"] for who in ("prefloop", "generate"))
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    shared = [next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), None) for a, b in zip(ours, theirs)]
    parted = [f"after {at} tokens" for at in shared if at is not None]
    others = f"; the others part {', '.join(parted)}" if parted else ""
    return f"Greedy: {same} of {len(ours)} answers are those of `generate`, token by token{others}."


def body(chosen: argparse.Namespace, arena: Arena) -> str:
    """Answers of equal length, answers that end, greedy answers."""
    from benchmarks._decode import CONTENDERS, TEMPERATURE, TOP_P

    model = _contest.fetch(chosen.model, arena.folder)
    prompts, k, tokens = (2, 2, 8) if chosen.quick else (chosen.prompts, chosen.k, chosen.tokens)
    facts = {"model": str(model), "prompts": prompts, "k": k, "tokens": tokens, "seed": 0}

    ways = {"All answers reach the limit": True, "Answers end themselves": False}
    sections = []
    for title, endless in list(ways.items())[chosen.quick :]:
        jobs = {name: {"who": name, **facts, "endless": endless} for name in CONTENDERS}
        told = arena.of(f"endless-{endless}").compete(jobs, chosen.repetitions)
        sections.append(speed(title, told))
    head = f"{prompts} prompts, K = {k}, {tokens} new tokens at most, temperature {TEMPERATURE}, top-p {TOP_P}; "
    head += f"medians and ranges of {chosen.repetitions} run(s)."
    return "\n\n".join([head, *sections, parity(told)])


def main() -> None:
    """Measure, print, publish."""
    parser = _contest.arguments(__doc__)
    for name, value in (("prompts", 8), ("k", 8), ("tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    _contest.run("benchmarks.sampling", parser, work, body, packages=("torch", "transformers"))


if __name__ == "__main__":
    main()
