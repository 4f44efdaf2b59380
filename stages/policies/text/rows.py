"""Rows that are sampled side by side: one prefill a prompt, one token a step, finished rows leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.policies.text.drawing import positions


@dataclass
class Rows:
    """What is kept of the rows that still grow."""

    cache: Any  # keys and values of their tokens
    attention: Tensor  # [alive,s]
    logits: Tensor  # [alive,v] of their next token, float32
    alive: Tensor  # [alive] which of all rows they are

    @classmethod
    def prefill(cls, model: Any, ids: Tensor, attention: Tensor, k: int) -> Rows:
        """Read each left-padded prompt `[b,s]` once for its k rows."""
        from transformers import DynamicCache

        cache = DynamicCache(config=model.config)
        logits = (
            model(
                input_ids=ids,
                attention_mask=attention,
                position_ids=positions(attention),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        cache.batch_repeat_interleave(k)
        alive = torch.arange(len(ids) * k, device=ids.device)
        return cls(cache, attention.repeat_interleave(k, 0), logits.repeat_interleave(k, 0), alive)

    def advance(self, model: Any, drawn: Tensor, keep: Tensor) -> None:
        """Append the drawn tokens `[alive]` to the rows that `keep` holds of, and drop the others."""
        if not keep.all():
            kept = keep.nonzero().squeeze(-1)
            self.cache.batch_select_indices(kept)
            self.alive, self.attention, drawn = self.alive[kept], self.attention[kept], drawn[kept]
        self.attention = torch.cat([self.attention, self.attention.new_ones(len(self.alive), 1)], 1)
        self.logits = (
            model(
                input_ids=drawn[:, None],
                attention_mask=self.attention,
                past_key_values=self.cache,
                position_ids=self.attention.sum(1, keepdim=True) - 1,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )
