"""How near a training step comes to the machine's own matrix products.

    python -m benchmarks.rate

The useful multiply-adds of a DPO step with LoRA and cached reference log-probs are counted from tokens and shapes, then
divided by the time of a step of the real loop. Counted, once each:

- frozen linear layers: forward, and the gradient by their input where something below learns
- adapters: forward, and the gradients by input and weights
- the head on answers' tokens: logits, and the gradient by the hidden states
- attention on (query, key) pairs that see each other: two products forward, four backward

Not counted: padding, anything computed twice, elementwise work, the optimizer. The ceiling is oneDNN's product at the
same shapes and numbers of rows, forward and backward, timed alone and weighed as the step weighs them. A step is taken
twice: its pairs share one forward pass, the stage's default, or each has its own, as in `benchmarks.dpo`, for memory.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import _contest, _dpo, _pairs
from benchmarks._contest import Arena
from benchmarks._report import goal, spread, table
from stages.config import Run

RANK, LONGEST = 16, 512
Rows = list[tuple[list[int], list[int]]]  # token ids of prompt and answer


def run_of() -> Run:
    """The node `run` of params.yaml."""
    return Run(family="text", seed=0, device="cpu", dtype="float32", policy={"max_length": LONGEST})


def tokens(rows: Rows) -> int:
    """Tokens that the layers see: each prompt once, answers without their last token."""
    prompts = {tuple(prompt) for prompt, _ in rows}
    return sum(map(len, prompts)) + sum(len(answer) - 1 for _, answer in rows)


def seen(rows: Rows) -> int:
    """Pairs of a query and a key that it sees.

    >>> seen([([1, 2], [3, 4, 5]), ([1, 2], [6])])  # 1 + 2 of the prompt, 3 + 4 of the first answer's two fed tokens
    10
    """
    prompts = {tuple(prompt) for prompt, _ in rows}
    own = sum(len(p) * (len(p) + 1) // 2 for p in prompts)
    return own + sum(len(p) + j + 1 for p, answer in rows for j in range(len(answer) - 1))


def products(policy: Any) -> dict[tuple[int, int], int]:
    """How many adapted layers there are of each shape (out, in)."""
    from peft.tuners.lora import Linear

    found: dict[tuple[int, int], int] = {}
    for module in policy.model.modules():
        if isinstance(module, Linear):
            base: Any = module.get_base_layer()
            shape = (base.out_features, base.in_features)
            found[shape] = found.get(shape, 0) + 1
    return found


def useful(policy: Any, rows: Rows) -> dict[str, float]:
    """Multiply-adds of a step, by what they are for."""
    config = policy.causal.config
    n, shapes = tokens(rows), products(policy)
    first = sum(
        module.weight.numel()
        for name, module in policy.causal.named_modules()
        if ".layers.0.self_attn." in f".{name}"
        and name.endswith(("q_proj.base_layer", "k_proj.base_layer", "v_proj.base_layer"))
    )  # nothing below the first layer's attention learns
    frozen = sum(count * out * into for (out, into), count in shapes.items())
    adapters = sum(count * RANK * (out + into) for (out, into), count in shapes.items())
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_pair = config.num_hidden_layers * config.num_attention_heads * width
    answers = sum(len(answer) for _, answer in rows)
    return {
        "layers": float(n * (2 * frozen - first)),
        "adapters": float(n * 3 * adapters),
        "head": 2.0 * answers * config.vocab_size * config.hidden_size,
        "attention": 6.0 * seen(rows) * per_pair,
    }


def ceiling(policy: Any, rows: Rows, repetitions: int) -> tuple[float, list[float]]:
    """Multiply-adds of all frozen products of a step and the seconds that they alone take, each repetition."""
    import torch

    from stages.policies.text import head
    from stages.policies.text.linear import product

    n, answers = tokens(rows), sum(len(answer) for _, answer in rows)
    vocabulary, width = policy.causal.config.vocab_size, policy.causal.config.hidden_size
    shapes = [(n, out, into, count) for (out, into), count in products(policy).items()]
    shapes += [(len(range(answers)[rows_]), vocabulary, width, 1) for rows_ in head.chunks(answers, vocabulary)]
    total, seconds = 0.0, [0.0] * repetitions
    for rows_, out, into, count in shapes:
        x, dy, weight = torch.randn(rows_, into), torch.randn(rows_, out), torch.randn(out, into)
        for given, by in ((x, weight), (dy, weight.t())):
            product(given, by)
            total += count * rows_ * out * into
            for i in range(repetitions):
                taken: list[float] = []
                with _contest.timed(taken):
                    product(given, by)
                seconds[i] += count * taken[0]
    return total, seconds


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Steps of the real loop on the same pairs again and again, the ceiling before and after."""
    import torch

    from stages import records
    from stages.policies import family
    from stages.records import Pair

    folder, model = Path(job["folder"]), Path(job["model"])
    policy: Any = family.to_train(run_of(), model, lora_r=RANK)
    rows = [
        policy.encode(one.messages, side)
        for one in records.read(folder / "pairs.jsonl", Pair)
        for side in (one.chosen, one.rejected)
    ]
    counted = useful(policy, rows)
    with torch.no_grad():
        total, before = ceiling(policy, rows, job["repetitions"])
    told = _dpo.ours(folder, model, run_of(), _dpo.settings(job["steps"] + 1, RANK, job["pass"]), Path.cwd())
    with torch.no_grad():
        total, after = ceiling(policy, rows, job["repetitions"])
    return {
        "counted": counted,
        "tokens": tokens(rows),
        "steps": told["steps"][1:],
        "ceiling": [total / taken for taken in (*before, *after)],
    }


def section(name: str, told: dict[str, Any]) -> str:
    """The figures of one data set."""
    total, best = sum(told["counted"].values()), statistics.median(told["ceiling"])
    rates = [total / step for step in told["steps"]]
    rows = [[part, f"{value / 1e9:.1f}", f"{100 * value / total:.0f} %"] for part, value in told["counted"].items()]
    rows.append(["all", f"{total / 1e9:.1f}", "100 %"])
    facts = f"{told['tokens']} unique tokens a step; {spread(told['steps'])} s a step; "
    facts += f"{spread([rate / 1e9 for rate in rates], 1)} G multiply-adds/s; "
    facts += f"ceiling {spread([rate / 1e9 for rate in told['ceiling']], 1)}."
    line = goal("share of the ceiling", [rate / best for rate in rates], 0.6)
    return f"### {name}\n\n{facts}\n\n{table(['useful', 'G multiply-adds', 'share'], rows)}\n\n{line}"


def body(chosen: argparse.Namespace, arena: Arena) -> str:
    """People's pairs where the file is there, and long prompts."""
    from stages.policies import family

    steps = 2 if chosen.quick else chosen.steps
    sources = {
        "long prompts, short answers": _pairs.made_up(*(((20, 30), (2, 4)) if chosen.quick else ((180, 260), (8, 24))))
    }
    if chosen.data.exists():
        sources = {f"people's pairs ({chosen.data.name})": _pairs.people(chosen.data), **sources}
    sections = []
    for number, (name, found) in enumerate(sources.items()):
        folder = arena.folder / f"data-{number}"
        folder.mkdir()
        model = _contest.fetch(chosen.model, folder)
        pairs = _pairs.fitting(family.load(run_of(), model), found, _dpo.BATCH, LONGEST)
        _dpo.write(folder, model, pairs, run_of(), RANK)
        job = {"folder": str(folder), "model": str(model), "steps": steps, "repetitions": chosen.repetitions}
        for together in (_dpo.BATCH, 1):
            told = arena.apart(f"rate-{number}-{together}", {**job, "pass": together})
            sections.append(section(f"{name}, pairs a pass: {together}", told))
    head = f"DPO, {_dpo.BATCH} pairs a step, LoRA r = {RANK}; medians and ranges of {steps} steps."
    return "\n\n".join([head, *sections])


def main() -> None:
    """Measure, print, publish."""
    parser = _contest.arguments(__doc__)
    parser.add_argument(
        "--data", type=Path, default=_pairs.DATA, help="people's pairs, in any shape of the prepare stage"
    )
    parser.add_argument("--steps", type=int, default=8)
    _contest.run("benchmarks.rate", parser, work, body, packages=("torch", "transformers", "peft"))


if __name__ == "__main__":
    main()
