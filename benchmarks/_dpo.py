"""DPO by the code of the stages, and the files from which both it and TRL's trainer start."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _pairs
from stages import feed, learn, records
from stages.config import Choice, Run
from stages.journal import Journal
from stages.learn import Optimize
from stages.policies import family
from stages.policies.text.memory import trim
from stages.records import Pair

BETA, RATE, BATCH = 0.1, 1e-4, 4


class Clock(Journal):
    """A journal that remembers when each step ended."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        super().__init__(*given, **named)

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Log a step."""
        super().log(step, values)
        self.ends.append(time.perf_counter())
        self.losses.append(float(values["loss"]))


def settings(epochs: int, rank: int, at_once: int = 1, **more: Any) -> Optimize:
    """As TRL is told, but `at_once` pairs a forward pass: the same step, with fewer activations or in less time."""
    return Optimize(
        objective=Choice.model_validate({"name": "dpo", "beta": BETA}),
        num_train_epochs=epochs,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=BATCH // at_once,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        lora_r=rank,
        **more,
    )


def write(folder: Path, model: Path, pairs: Sequence[Pair], run: Run, rank: int) -> None:
    """The pairs as ours and as TRL's, their token ids, and a new adapter."""
    policy: Any = family.to_train(run, model, lora_r=rank)
    records.write(folder / "pairs.jsonl", pairs)
    lines = [json.dumps(_pairs.texts(policy, one)) for one in pairs]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    ids = []
    for one in pairs:
        (prompt, chosen), (_, rejected) = (policy.encode(one.messages, side) for side in (one.chosen, one.rejected))
        ids.append([prompt, chosen, rejected])
    (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    policy.save(folder / "adapter")


def ours(folder: Path, model: Path, run: Run, chosen: Optimize, home: Path) -> dict[str, Any]:
    """What the reference and the optimize stage do; seconds of the reference pass and of each step, and the losses."""
    pairs = records.read(folder / "pairs.jsonl", Pair)
    policy = family.load(run, model)
    start = time.perf_counter()
    cache = feed.reference(policy, feed.at_draws(policy, pairs, 1))
    reference = time.perf_counter() - start
    del policy
    gc.collect()  # the stages are processes of their own
    trim()
    policy = family.to_train(run, model, lora_r=chosen.lora_r)
    scratch = home / "scratch"
    scratch.mkdir()
    journal = Clock("optimize", scratch / "journal", chosen.model_dump(mode="json"), {}, root=home / "outbox")
    with journal:
        start = time.perf_counter()
        learn.learn(policy, pairs, chosen, cache, seed=run.seed, scratch=scratch, journal=journal, label="dpo")
    steps = [end - begin for begin, end in zip([start, *journal.ends], journal.ends)]
    return {"reference": reference, "steps": steps, "losses": journal.losses}


def theirs(folder: Path, model: Path, run: Run, chosen: Optimize, home: Path, **more: Any) -> dict[str, Any]:
    """The same by TRL's DPOTrainer."""
    from datasets import load_dataset

    from benchmarks import _trl

    rows = load_dataset("json", data_files=str(folder / "texts.jsonl"), split="train", cache_dir=str(home / "datasets"))
    whole, tokenizer = _trl.load(model)
    told = _trl.dpo(
        whole,
        tokenizer,
        rows,
        adapter=folder / "adapter",
        rank=chosen.lora_r,
        output=home / "trl",
        seed=run.seed,
        beta=BETA,
        learning_rate=chosen.learning_rate,
        num_train_epochs=chosen.num_train_epochs,
        per_device_train_batch_size=BATCH,
        max_length=run.policy["max_length"],
        **more,
    )
    if told.pop("ids") != json.loads((folder / "ids.json").read_text(encoding="utf-8")):
        raise SystemExit("TRL trains on other tokens than prefloop")
    return told
