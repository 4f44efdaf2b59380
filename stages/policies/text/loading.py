"""Language models from disk: whole, or an adapter on the model it names, ready to be priced and trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.errors import UserError
from stages.policies.text import linear
from stages.policies.text.memory import trim
from stages.policies.weights import check_weights

LORA_TARGETS = "all-linear"


def read(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
    lora_r: int = 0,
    seed: int = 0,
    gradient_checkpointing: bool = False,
) -> tuple[Any, Any]:
    """A model and its tokenizer, see `TextPolicy.load`."""
    check_weights(folder)
    adapter = folder / "adapter_config.json"
    base = Path(json.loads(adapter.read_text())["base_model_name_or_path"]) if adapter.exists() else folder
    if base != folder:
        check_weights(base)
    try:
        model, tokenizer = _read(base, folder, dtype, trainable=trainable, keep=trainable and lora_r > 0)
    except Exception as error:  # libraries raise a dozen types for a broken file
        what = f"cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        mend = "replace the files, or rerun the stage that wrote them"
        raise UserError(what, where=str(folder), mend=mend) from error
    if trainable and lora_r and base == folder:
        torch.manual_seed(seed)
        model = with_adapter(model, lora_r)
    model.to(device).train(trainable)
    without_dropout(model)
    if not trainable:
        model.requires_grad_(False)
    elif gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    linear.speed_up(model)
    trim()
    return model, tokenizer


def _read(base: Path, folder: Path, dtype: torch.dtype, *, trainable: bool, keep: bool) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
    if base != folder:
        model = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
        model = model if keep else model.merge_and_unload()
    return model, tokenizer


def without_dropout(model: nn.Module) -> None:
    """The same log-probs with and without training: at step 0 the policy is its reference."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def with_adapter(model: Any, rank: int) -> Any:
    """A new LoRA adapter on every linear layer but the head; alpha is twice the rank."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    transposed = any(isinstance(module, Conv1D) for module in model.modules())  # GPT-2's weights are [i,o]
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=LORA_TARGETS,
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
