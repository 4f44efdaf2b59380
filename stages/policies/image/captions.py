"""Captions to what the denoiser is conditioned on, each caption computed once while its encoder is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Embed = Callable[[Sequence[str]], Tensor]  # captions to `[n, ...]`; the empty caption is the unconditional one


class TextEmbed(nn.Module):
    """The last hidden states of a Hugging Face text encoder, `[n, s, d]`."""

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        super().__init__()
        self.tokenizer, self.text_encoder = tokenizer, text_encoder

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Encode captions as diffusers' pipelines do: padded to the tokenizer's full length."""
        ids = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids.to(self.text_encoder.device))[0]


class Captions:
    """An embedder of captions that remembers what it has seen unless it is being trained."""

    def __init__(self, embed: Embed, device: Any) -> None:
        self.embed, self.device = embed, device
        self.known: dict[str, Tensor] = {}

    def parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer moves, by name."""
        if not isinstance(self.embed, nn.Module):
            return {}
        return {name: p for name, p in self.embed.named_parameters() if p.requires_grad}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """The condition of each caption, `[n, ...]`; equal captions are computed once."""
        place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        if self.parameters():
            table = self.embed(list(place)).to(self.device)
        else:
            unseen = [caption for caption in place if caption not in self.known]
            if unseen:
                with torch.no_grad():
                    self.known.update(zip(unseen, self.embed(unseen).to(self.device), strict=True))
            table = torch.stack([self.known[caption] for caption in place])
        return table[torch.tensor([place[caption] for caption in captions], device=self.device)]
