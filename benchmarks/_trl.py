"""TRL's trainers beside ours: same pairs, same order, same initial adapter, same optimizer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import UserError

if TYPE_CHECKING:
    import torch

ADAPTER: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
COMMON = {  # what both sides do alike, and what would only cost TRL time
    "use_cpu": True,
    "bf16": False,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "seed": 0,
}
FAST = {"gradient_checkpointing": False}  # needs memory, saves a forward pass


def require() -> None:
    """TRL is installed.

    Raises:
        UserError: it is not.
    """
    if find_spec("trl") is None:
        raise UserError("TRL is not installed", where="benchmarks", mend="pip install -e '.[bench]' (trl==1.16.0)")


class Order:
    """The order in which `stages.loop` takes examples, epoch after epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, -1

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        import torch

        self.epoch += 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


def load(folder: Path) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def start_from(model: Any, adapter: Path) -> None:
    """Give a model with a new adapter the weights of a saved one."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    told: Any = set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
    assert not told.unexpected_keys, told.unexpected_keys


def lora(rank: int) -> Any:
    """The adapter that `stages.policies.text` makes."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, **ADAPTER)


def dpo(
    model: Any,
    tokenizer: Any,
    rows: Any,
    *,
    adapter: Path,
    rank: int,
    output: Path,
    seed: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    """Train by TRL's DPOTrainer.

    Args:
        model: whole, float32.
        tokenizer: its own.
        rows: a `datasets.Dataset` of prompt, chosen and rejected as texts.
        adapter: the initial weights of the adapter.
        rank: of the adapter.
        output: TRL's output folder.
        seed: of the order.
        settings: of DPOConfig, beside `COMMON`.

    Returns:
        Seconds of the reference pass ahead of training (0: it is part of the steps), seconds of each step, its loss,
        and the token ids that were trained on.
    """
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    losses: list[float] = []
    ends: list[float] = []
    ahead: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    class Trainer(DPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return Order(len(rows), seed)

        def _precompute_ref_logps(self, *given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            found = super()._precompute_ref_logps(*given, **named)
            ahead.append(time.perf_counter() - start)
            return found

        def training_step(self, *given: Any, **named: Any) -> torch.Tensor:
            loss = super().training_step(*given, **named)
            losses.append(float(loss))
            return loss

    trainer: Any = Trainer(
        model=model,
        args=DPOConfig(output_dir=str(output), **{**COMMON, **settings}),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora(rank),
        callbacks=[Clock()],
    )
    start_from(trainer.model, adapter)
    ids = [[row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]] for row in trainer.train_dataset]
    start = time.perf_counter()
    trainer.train()
    steps = [end - begin for begin, end in zip([start, *ends], ends)]
    return {"reference": sum(ahead), "steps": steps, "losses": losses, "ids": ids}
