"""A step of GRPO beside TRL's GRPOTrainer: K samples of each prompt, a cheap reward, an update.

    python -m benchmarks.grpo

Same prompts in a step, K, length limit, temperature, adapter shape and reward (answers of 20 to 40 words are wished),
float32, no pull to a reference, one update a batch of samples. Ours is `optimize` with `online`, journal and MLflow
included. TRL runs with its defaults (gradient checkpointing, `generate`), without checkpointing, and if asked for with
transformers' continuous batching. The first step warms up and is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import _contest, _trl
from benchmarks._contest import Arena
from benchmarks._report import goal, spread, table

RANK, RATE, WISH = 16, 1e-5, {"low": 20, "high": 40}
GRPO = {"name": "grpo", "beta": 0.0, "loss_type": "bnpo"}  # TRL's default, `dapo`, in one forward pass
PAGED = {"page_size": 256, "num_blocks": 160, "max_batch_tokens": 2048}
SETTINGS: dict[str, dict[str, Any]] = {  # of TRL
    "TRL": {},
    "TRL, fastest": _trl.FAST,
    "TRL, continuous batching": {
        **_trl.FAST,
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": PAGED,
    },
}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train once; seconds, sampled tokens and mean reward of each step but the first."""
    told = ours(job, Path.cwd()) if job["who"] == "prefloop" else theirs(job, Path.cwd())
    return {name: values[1:] for name, values in told.items()}


def ours(job: dict[str, Any], home: Path) -> dict[str, list[float]]:
    """What the optimize stage does where the objective learns online."""
    from benchmarks._decode import asked
    from benchmarks._dpo import Clock
    from stages import online
    from stages.config import Choice, Run
    from stages.learn import Optimize
    from stages.online import Online
    from stages.panel import Tools
    from stages.policies import family

    run = Run(family="text", seed=0, device="cpu", dtype="float32", policy={"max_length": 512})
    settings = Optimize(
        objective=Choice.model_validate(GRPO),
        per_device_train_batch_size=job["prompts"],
        learning_rate=RATE,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        lora_r=RANK,
        online=Online(
            rewards={"length": WISH},
            num_generations=job["k"],
            sampler={"temperature": 1.0, "max_new_tokens": job["tokens"]},
        ),
    )
    policy: Any = family.to_train(run, Path(job["model"]), lora_r=RANK)
    objective, chosen = settings.objective.part("objective", "optimize.objective")
    apart = {"reference", "kl"} & set(objective.needs(chosen))  # as stages/optimize/run.py
    reference = family.load(run, Path(job["model"])) if apart else None
    counts: list[float] = []
    sample = policy.sample

    def counted(*given: Any, **named: Any) -> Any:
        drawn = sample(*given, **named)
        counts.append(sum(len(candidate.tokens) for candidate in drawn))
        return drawn

    policy.sample = counted
    scratch, prompts = home / "scratch", asked(job["prompts"] * job["steps"])
    scratch.mkdir()
    journal = Clock("optimize", scratch / "journal", settings.model_dump(mode="json"), {}, root=home / "outbox")
    with journal:
        start = time.perf_counter()
        online.learn(policy, reference, prompts, settings, Tools(), run=run, scratch=scratch, journal=journal)
    steps = [end - begin for begin, end in zip([start, *journal.ends], journal.ends)]
    return {"steps": steps, "tokens": counts, "rewards": [row["reward"] for row in journal._rows()]}


def theirs(job: dict[str, Any], home: Path) -> dict[str, list[float]]:
    """TRL's GRPOTrainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks._decode import asked
    from stages.label.rewards.length import length
    from stages.records import Candidate

    prompts = asked(job["prompts"] * job["steps"])
    by_text = {prompt.messages[-1].content: prompt for prompt in prompts}
    counts: list[float] = []
    rewards: list[float] = []
    ends: list[float] = []

    def reward(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        about = [by_text[turns[-1]["content"]] for turns in prompts]
        said = [Candidate(id="c", prompt="p", text=turns[-1]["content"], tokens=(0,)) for turns in completions]
        found = length(about, said, **WISH)
        counts.append(sum(map(len, completion_ids)))
        rewards.append(statistics.fmean(value or 0.0 for value in found))
        return found

    class Steps(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    model, tokenizer = _trl.load(Path(job["model"]))
    config = {
        **_trl.COMMON,
        "learning_rate": RATE,
        "per_device_train_batch_size": job["prompts"] * job["k"],
        "num_generations": job["k"],
        "max_completion_length": job["tokens"],
        "temperature": 1.0,
        "num_train_epochs": 1,
        **SETTINGS[job["who"]],
    }
    rows = [{"prompt": [message.model_dump() for message in prompt.messages]} for prompt in prompts]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(home / "trl"), **config),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=_trl.lora(RANK),
        callbacks=[Steps()],
    )
    start = time.perf_counter()
    trainer.train()
    return {"steps": [b - a for a, b in zip([start, *ends], ends)], "tokens": counts, "rewards": rewards}


def body(chosen: argparse.Namespace, arena: Arena) -> str:
    """Steps of all contenders."""
    _trl.require()
    prompts, k, tokens, steps = (
        (2, 2, 8, 2) if chosen.quick else (chosen.prompts, chosen.k, chosen.tokens, chosen.steps)
    )
    names = [
        "prefloop",
        *([] if chosen.quick else ["TRL"]),
        "TRL, fastest",
        *(["TRL, continuous batching"] if chosen.continuous else []),
    ]
    model = str(_contest.fetch(chosen.model, arena.folder))
    facts = {"model": model, "prompts": prompts, "k": k, "tokens": tokens, "steps": steps + 1}
    told = arena.compete({name: {"who": name, **facts} for name in names}, chosen.repetitions)
    every = {who: [step for run in runs for step in run["steps"]] for who, runs in told.items()}
    rows = [
        [
            who,
            spread(every[who], 1),
            f"{statistics.median(count for run in runs for count in run['tokens']):.0f}",
            f"{statistics.fmean(reward for run in runs for reward in run['rewards']):.2f}",
            spread([run["peak"] for run in runs]),
        ]
        for who, runs in told.items()
    ]
    goals = [
        goal(f"a step against {who}", [b / a for a, b in zip(every["prefloop"], theirs, strict=True)], 2.0)
        for who, theirs in every.items()
        if who != "prefloop"
    ]
    head = f"{prompts} prompts, K = {k}, at most {tokens} new tokens, LoRA r = {RANK}; "
    head += f"{steps} steps in each of {chosen.repetitions} run(s)."
    made = table(["", "s a step", "tokens a step", "mean reward", "peak GiB"], rows)
    return f"{head}\n\n{made}\n\n" + "\n".join(goals)


def main() -> None:
    """Measure, print, publish."""
    parser = _contest.arguments(__doc__)
    for name, value in (("prompts", 4), ("k", 8), ("tokens", 64), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--continuous", action="store_true", help="also TRL with transformers' continuous batching")
    parser.set_defaults(repetitions=1)
    _contest.run("benchmarks.grpo", parser, work, body)


if __name__ == "__main__":
    main()
