"""The sentence encoder: any Hugging Face encoder, mean-pooled and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.errors import UserError
from stages.policies.order import TIGHT, by_length
from stages.policies.weights import check_weights


class Encoder:
    """Texts to unit vectors; the dot product of two is their cosine similarity."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.limit = min(int(model.config.max_position_embeddings), 256)

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> Encoder:
        """Read a `save_pretrained` folder.

        Raises:
            UserError: no model there, or a corrupt file.
        """
        from transformers import AutoModel, AutoTokenizer

        check_weights(folder)
        try:
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
            return cls(model.to(device).eval(), AutoTokenizer.from_pretrained(folder))
        except Exception as error:  # libraries raise a dozen types for a broken file
            what = f"cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            raise UserError(what, where=str(folder), mend="replace the files, or rerun prepare") from error

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors `[n, d]`, float32; a text beyond the encoder's length is cut."""
        if not texts:
            return torch.zeros(0, self.model.config.hidden_size)
        ids = self.tokenizer(list(texts), truncation=True, max_length=self.limit)["input_ids"]
        out = torch.empty(len(texts), self.model.config.hidden_size)
        for batch in by_length(ids, tokens=4096, waste=TIGHT):
            padded = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            padded = padded.to(self.model.device)
            hidden = self.model(**padded).last_hidden_state  # [b,s,d]
            mask = padded["attention_mask"][..., None]
            out[batch] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1).cpu()
        return out
