"""Tiny random models of the families of Hugging Face decoders, built in code."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers as hf

VOCABULARY = 101
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "llama-tied": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, tie_word_embeddings=True)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED, tie_word_embeddings=True)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GROUPED, head_dim=8)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(  # soft caps on scores and logits, a window on every other layer
        hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=6, query_pre_attn_scalar=8, final_logit_softcapping=5.0)
    ),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=5)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=7)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**GROUPED, partial_rotary_factor=0.5)),  # a bias on the head
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED, logit_scale=0.25)),
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(**GROUPED, logits_scaling=3.0)),
    "gpt2": lambda: hf.GPT2LMHeadModel(  # absolute positions, tied, dropout in its config
        hf.GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=1,
        )
    ),
}

STATEFUL: dict[str, Callable[[], Any]] = {  # what carries a state along the sequence cannot be packed
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            state_size=4,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=2,
        )
    ),
}


class Tokens:
    """As much of a tokenizer as a policy asks of one that is given token ids."""

    pad_token_id, eos_token_id = 2, 1


def build(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A model without dropout, the same for the same name; in float64 so are its norms, which transformers' are not."""
    torch.manual_seed(0)
    model = (FAMILIES | STATEFUL)[name]().to(dtype).eval()
    for module in model.modules() if dtype == torch.float64 else ():
        kind = type(module).__name__
        if kind.endswith("RMSNorm") or kind == "CohereLayerNorm":
            module.forward = partial(_norm, kind, module)
    return model


def _norm(kind: str, module: Any, x: torch.Tensor) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True) if kind == "CohereLayerNorm" else x
    eps = getattr(module, "variance_epsilon", None) or module.eps
    weight = 1 + module.weight if kind.startswith("Gemma") else module.weight
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
