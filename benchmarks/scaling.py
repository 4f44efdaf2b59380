"""What a training step and sampling cost as something grows: straight lines, their slopes and how straight they are.

    python -m benchmarks.scaling

A line is fitted to the medians of each size by least squares. R^2 near 1 says that the cost is linear; the intercept is
what is paid whatever the size. The model has the layers' shapes of SmolLM2-135M, fewer layers and random weights.

- tokens: a DPO step of 4 pairs, prompts of growing length
- pairs: DPO steps of 4 pairs each, over a growing number of pairs
- K, priced: a policy-gradient step on K answers of one long prompt, which is computed once
- K, sampled: K answers of 4 prompts
- vocabulary: a DPO step of 4 pairs, the same tokens, heads of growing vocabulary
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import _contest
from benchmarks._contest import Arena
from benchmarks._report import table

RANK, BATCH = 16, 4


@dataclass(frozen=True)
class Line:
    """Seconds at some sizes."""

    name: str
    unit: str
    sizes: list[int]
    make: Callable[[int], Callable[[], Any]]  # what is done at a size


def measure(line: Line, repetitions: int) -> list[float]:
    """Median seconds at each size; a round takes all sizes in a random order, after one that warms up."""
    calls = [line.make(size) for size in line.sizes]
    taken: list[list[float]] = [[] for _ in calls]
    order = random.Random(0)
    for call in calls:
        call()
    for _ in range(repetitions):
        for i in order.sample(range(len(calls)), len(calls)):
            with _contest.timed(taken[i]):
                calls[i]()
    return [statistics.median(told) for told in taken]


def fit(x: list[int], y: list[float]) -> tuple[float, float, float]:
    """Slope, intercept and R^2 of the least-squares line.

    >>> fit([1, 2, 3], [3.0, 5.0, 7.0])
    (2.0, 1.0, 1.0)
    """
    slope, intercept = statistics.linear_regression(x, y)
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - statistics.fmean(y)) ** 2 for b in y)
    return slope, intercept, 1 - residual / total


def build(folder: Path, vocabulary: int, layers: int, width: int) -> Any:
    """A policy to train, of random weights, with a vocabulary of a given size."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from stages.policies import tiny
    from stages.policies.text.policy import TextPolicy, TextSettings

    made = folder / f"vocabulary-{vocabulary}"
    if not made.exists():
        tiny.tokenizer(made)
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=width * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            num_key_value_heads=max(1, width // 192),
            max_position_embeddings=8192,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=2,
        )
        LlamaForCausalLM(config).save_pretrained(made)
    assert len(AutoTokenizer.from_pretrained(made)) <= vocabulary
    return TextPolicy.load(made, TextSettings(max_length=8192), trainable=True, lora_r=RANK)


def pair(number: int, prompt: int, answer: int) -> Any:
    """A pair of so many bytes, each a token of the tiny tokenizer."""
    from stages.records import Completion, Message, Pair

    sides = [Completion(text=letter * answer) for letter in "ab"]
    asked = Message(role="user", content=f"{number:08d}" + "x" * (prompt - 8))
    return Pair(id=f"p{number}", messages=(asked,), chosen=sides[0], rejected=sides[1])


def dpo_step(policy: Any, pairs: list[Any]) -> None:
    """Loss and gradient, as the optimize stage makes them; the policy is its own reference."""
    from stages import feed
    from stages.batches import Pairs
    from stages.optimize.objectives.dpo import dpo

    batch = feed.batch(policy, pairs, (), None)
    assert isinstance(batch, Pairs)
    sides = [replace(side, ref=side.logp.detach()) for side in (batch.chosen, batch.rejected)]
    losses, _ = dpo(replace(batch, chosen=sides[0], rejected=sides[1]))
    losses.mean().backward()


def lines(folder: Path, quick: bool) -> list[Line]:
    """What grows."""
    layers, width, big = (1, 64, 512) if quick else (6, 576, 49152)
    scale = 8 if quick else 1
    policy = build(folder, big, layers, width)

    def tokens(size: int) -> Callable[[], Any]:
        each = size // BATCH - 96 // scale
        return lambda: dpo_step(policy, [pair(n, each, 48 // scale) for n in range(BATCH)])

    def pairs(size: int) -> Callable[[], Any]:
        made = [pair(n, 128 // scale, 48 // scale) for n in range(size)]
        parts = [made[i : i + BATCH] for i in range(0, size, BATCH)]
        return lambda: [dpo_step(policy, part) for part in parts]  # type: ignore[func-returns-value]

    def priced(size: int) -> Callable[[], Any]:
        from stages.batches import Item
        from stages.records import Completion, Message

        asked = (Message(role="user", content="x" * (512 // scale)),)
        items = [Item(str(n), asked, Completion(text=f"{n:08d}" * (8 // min(scale, 4)))) for n in range(size)]
        return lambda: policy.log_probs(items).logp.sum().backward()

    def sampled(size: int) -> Callable[[], Any]:
        from stages.records import Message, Prompt

        asked = [Prompt(id=str(n), messages=(Message(role="user", content="x" * 64),)) for n in range(4)]
        return lambda: policy.sample(asked, size, seed=0, max_new_tokens=32 // scale)

    def vocabulary(size: int) -> Callable[[], Any]:
        other = build(folder, size, layers, width)
        return lambda: dpo_step(other, [pair(n, 128 // scale, 48 // scale) for n in range(BATCH)])

    return [
        Line("tokens", "token", [512 // scale * n for n in (1, 2, 3, 4, 6)], tokens),
        Line("pairs", "pair", [4, 8, 16, 24], pairs),
        Line("K, priced", "answer", [2, 4, 8, 16], priced),
        Line("K, sampled", "answer of each prompt", [2, 4, 8, 16], sampled),
        Line(
            "vocabulary",
            "1000 entries",
            [n // (scale * 4 if quick else 1) for n in (16384, 32768, 49152, 98304)],
            vocabulary,
        ),
    ]


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Measure all lines in one process."""
    found = []
    for line in lines(Path.cwd(), job["quick"]):
        start = time.perf_counter()
        seconds = measure(line, job["repetitions"])
        scale = 1000 if line.name == "vocabulary" else 1
        slope, intercept, straight = fit(line.sizes, seconds)
        told = " ".join(f"{size}:{1000 * s:.0f}" for size, s in zip(line.sizes, seconds, strict=True))
        slope *= 1000 * scale
        found.append([line.name, told, f"{slope:.2f} ms a {line.unit}", f"{1000 * intercept:.0f}", f"{straight:.4f}"])
        found[-1].append(f"{time.perf_counter() - start:.0f}")
    return {"lines": found}


def body(chosen: argparse.Namespace, arena: Arena) -> str:
    """The table of lines."""
    told = arena.apart("lines", {"quick": chosen.quick, "repetitions": chosen.repetitions})["lines"]
    head = ["", "size:ms", "slope", "intercept, ms", "R^2"]
    return f"Medians of {chosen.repetitions} run(s).\n\n{table(head, [line[:5] for line in told])}"


def main() -> None:
    """Measure, print, publish."""
    parser = _contest.arguments(__doc__)
    parser.set_defaults(repetitions=5)
    _contest.run("benchmarks.scaling", parser, work, body, packages=("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
