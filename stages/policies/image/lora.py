"""LoRA on a denoiser, on disk in the format of diffusers' `load_lora_weights`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

WEIGHTS = "pytorch_lora_weights.safetensors"
TARGETS = {  # attention and feed-forward
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
}


def wrap(model: nn.Module, rank: int, *, base: str | None = None) -> Any:
    """A new LoRA adapter on a denoiser's attention and feed-forward layers, or on all linear layers if it has none.

    Alpha is the rank, so that the scale is 1 for every reader of the file. The adapter starts as zero.
    """
    from peft import LoraConfig, get_peft_model

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if any(f".{name}".endswith(f".{target}") for target in TARGETS)] or linear
    adapted = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))  # type: ignore[arg-type]
    adapted.peft_config["default"].base_model_name_or_path = base  # peft itself would take it from the model
    return adapted


def read(model: nn.Module, folder: Path) -> Any:
    """A denoiser with the adapter that `write` wrote."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = LoraConfig.from_pretrained(str(folder))
    base, config.base_model_name_or_path = config.base_model_name_or_path, None
    adapted = get_peft_model(model, config)  # type: ignore[arg-type]
    adapted.peft_config["default"].base_model_name_or_path = base
    weights = {_inner(name): value for name, value in load_file(folder / WEIGHTS).items()}
    result: Any = set_peft_model_state_dict(adapted, weights)
    unknown = result.unexpected_keys
    if unknown:
        raise ValueError(f"the base has no layer for {unknown[0]}")
    return adapted


def write(model: Any, folder: Path, *, prefix: str) -> None:
    """Write the adapter's weights under `unet.` or `transformer.`, and its config with the name of its base."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = model.peft_config["default"]
    found = {
        name.replace("base_model.model", prefix, 1): value.detach().contiguous().cpu()
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
    }
    facts = {f"{prefix}.r": config.r, f"{prefix}.lora_alpha": config.lora_alpha}
    facts[f"{prefix}.target_modules"] = sorted(config.target_modules)
    told = {"lora_adapter_metadata": json.dumps(facts)}  # one entry: the order of several is random, and so the bytes
    save_file(found, folder / WEIGHTS, metadata=told)
    config.save_pretrained(folder)


def _inner(name: str) -> str:
    return f"base_model.model.{name.split('.', 1)[1]}"
