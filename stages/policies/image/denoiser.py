"""One way to call any denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.policies.image.captions import Captions
from stages.policies.image.conventions import Condition, Convention


class Denoiser:
    """A UNet, a transformer or any module with one of their signatures, with classifier-free guidance.

    A guidance-distilled model (Flux) is told the weight instead, and called once.
    """

    def __init__(
        self,
        model: nn.Module,
        captions: Captions,
        convention: Convention,
        side: tuple[int, int],
        *,
        checkpointing: bool = False,
    ) -> None:
        """`side` is that of the pictures in pixels, height first."""
        self.model, self.captions, self.convention, self.side = model, captions, convention, side
        self.checkpointing = checkpointing
        config: Any = getattr(model, "config", {})
        self.distilled = bool(config.get("guidance_embeds", False))
        self.weights = next(model.parameters()).dtype
        self.dtype = torch.promote_types(self.weights, torch.float32)  # of everything but the weights

    def condition(self, captions: Sequence[str], guidance: float) -> Condition:
        """What `__call__` needs to know of the captions `[b]`: their conditions, the empty ones after them."""
        asked = [*captions, *[""] * len(captions)] if self._twice(guidance) else captions
        found = self.captions(asked)
        if self.distilled:
            found["guidance"] = torch.full((len(captions),), float(guidance), device=self.captions.device)
        return {name: v.to(self.weights) if v.is_floating_point() else v for name, v in found.items()}

    def __call__(self, x: Tensor, time: Tensor, condition: Condition, guidance: float) -> Tensor:
        """The model's output for noisy images `[b,c,h,w]` at times `[b]`.

        With guidance w other than 1 it is `empty + w * (captioned - empty)`, with the gradient of both.
        """
        if not self._twice(guidance):
            return self._call(x, time, condition)
        said, empty = self._call(torch.cat([x, x]), torch.cat([time, time]), condition).chunk(2)
        return empty + guidance * (said - empty)

    def _twice(self, guidance: float) -> bool:
        return guidance != 1 and not self.distilled

    def _call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        noisy = x.to(self.weights)
        out: Any
        if self.checkpointing and torch.is_grad_enabled():
            out = checkpoint(self._forward, noisy, time, condition, use_reentrant=False)
        else:
            out = self._forward(noisy, time, condition)
        return out[:, : x.shape[1]].to(self.dtype)  # a learned variance, where there is one, is left out

    def _forward(self, noisy: Tensor, time: Tensor, condition: Condition) -> Tensor:
        out = self.convention.call(self.model, noisy, time, condition, self.side)
        return out if isinstance(out, Tensor) else out.sample
