"""Captions to what the denoiser is conditioned on, each caption computed once while its encoder is frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stages.policies.image.conventions import WORDS, Condition
from stages.policies.image.memory import Memory

Embed = Callable[[Sequence[str]], Tensor | Condition]  # `[n, ...]` each; the empty caption is the unconditional one


class Captions:
    """An embedder of captions that remembers what it has seen unless it is being trained."""

    def __init__(self, embed: Embed, device: Any) -> None:
        self.embed, self.device = embed, device
        self.known = Memory()

    def parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer moves, by name."""
        if not isinstance(self.embed, nn.Module):
            return {}
        return {name: p for name, p in self.embed.named_parameters() if p.requires_grad}

    def __call__(self, captions: Sequence[str]) -> Condition:
        """The condition of each caption, `[n, ...]` each; equal captions are computed once."""
        place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        if self.parameters():
            table = self._encode(list(place))
        else:
            rows = [self.known[caption] if caption in self.known else self._learn(caption) for caption in place]
            table = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        at = torch.tensor([place[caption] for caption in captions], device=self.device)
        return {name: values.to(self.device)[at] for name, values in table.items()}

    @torch.no_grad()
    def _learn(self, caption: str) -> Condition:
        """Encode a caption, alone: its numbers do not depend on the batch that it was first met in."""
        return self.known.keep(caption, {name: values[0] for name, values in self._encode([caption]).items()})

    def _encode(self, captions: Sequence[str]) -> Condition:
        found = self.embed(captions)
        return {WORDS: found} if isinstance(found, Tensor) else found
