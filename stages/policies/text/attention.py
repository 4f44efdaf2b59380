"""One attention function for every Hugging Face decoder: theirs as it is, or over a layout of our own.

`install` makes a model call `attention` below. Called as usual it is PyTorch's scaled dot-product attention. Called
with `layout=...` (transformers hands unknown keywords down to the attention of each layer) the layout says which token
sees which: packed dialogues (`packing.py`), or rows that grow by a token at a time (`rows.py`). No padded batch and no
mask of all tokens times all tokens is made. A model that does not hand the keyword down is found out at first use
(`check.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "prefloop"


@dataclass(frozen=True)
class Scores:
    """How a layer makes scores of queries and keys."""

    scale: float | None = None  # of the dot product; 1 / sqrt(d) where absent
    window: int | None = None  # a token sees itself and the window - 1 tokens before it
    softcap: float | None = None  # scores become softcap * tanh(score / softcap) (Gemma 2)


class Layout(Protocol):
    """Which token sees which."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """The attention of one layer: query `[1,h,s,d]`, key and value `[1,h/g,s,d]`; returns `[1,s,h,d]`."""
        ...


def install(model: Any) -> None:
    """Let a model's layers call `attention`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer, in the shapes of transformers: query `[b,h,s,d]`, returns `[b,s,h,d]`.

    Dropout is never applied: a policy prices a completion the same while it is trained.
    """
    if layout is not None:
        return layout.attend(module.layer_idx, query, key, value, Scores(scaling, sliding_window, softcap)), None
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None and queries > 1 and getattr(module, "is_causal", True):  # transformers makes none then
        if softcap is None and queries == keys:
            out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
            return out.transpose(1, 2), None
        attention_mask = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    scores = Scores(scaling, None, softcap)  # the mask already knows the window
    return attend(query, key, value, attention_mask, scores).transpose(1, 2), None


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scores: Scores) -> Tensor:
    """Attention under a mask: query `[b,h,s,d]`, key and value `[b,h/g,l,d]`, mask `[b,1,s,l]` bool; `[b,h,s,d]`."""
    if scores.softcap is None:
        return scaled_dot_product_attention(query, key, value, mask, scale=scores.scale, enable_gqa=True)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = scored(query, key, scores)
    if mask is not None:
        lowest = torch.finfo(logits.dtype).min  # not -inf: a row of padding sees nothing, and must not become NaN
        logits = logits.masked_fill(~mask, lowest) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1) @ value


def scored(query: Tensor, key: Tensor, scores: Scores) -> Tensor:
    """Scores `[b,h,s,l]` of queries and keys, before any mask."""
    logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scores.scale is None else scores.scale)
    return logits if scores.softcap is None else scores.softcap * torch.tanh(logits / scores.softcap)


def band(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which key each query may see by their positions: causal, within the window; broadcasts."""
    distance = queries - keys
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)
