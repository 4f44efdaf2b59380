"""One way to call any denoiser."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stages.policies.image.captions import Captions


class Denoiser:
    """A UNet, a transformer or any module with one of their signatures, with classifier-free guidance."""

    def __init__(self, model: nn.Module, captions: Captions, *, checkpointing: bool = False) -> None:
        self.model, self.captions, self.checkpointing = model, captions, checkpointing
        inner: Any = model
        inner = inner.get_base_model() if hasattr(model, "peft_config") else inner  # its signature, not the adapter's
        known = inspect.signature(inner.forward).parameters
        self.by_name = "hidden_states" in known and "timestep" in known  # a transformer's signature
        self.weights = next(model.parameters()).dtype
        self.dtype = torch.promote_types(self.weights, torch.float32)  # of everything but the weights

    def condition(self, captions: Sequence[str], guidance: float) -> Tensor:
        """What `__call__` needs to know of the captions `[b]`: their conditions, the empty ones after them."""
        found = self.captions([*captions, *[""] * len(captions)] if guidance != 1 else captions)
        return found.to(self.weights) if found.is_floating_point() else found

    def __call__(self, x: Tensor, time: Tensor, condition: Tensor, guidance: float) -> Tensor:
        """The model's output for noisy images `[b,c,h,w]` at times `[b]`.

        With guidance w other than 1 it is `empty + w * (captioned - empty)`, with the gradient of both.
        """
        if guidance == 1:
            return self._call(x, time, condition)
        said, empty = self._call(torch.cat([x, x]), torch.cat([time, time]), condition).chunk(2)
        return empty + guidance * (said - empty)

    def _call(self, x: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        noisy = x.to(self.weights)
        out: Any
        if self.checkpointing and torch.is_grad_enabled():
            out = checkpoint(self._forward, noisy, time, condition, use_reentrant=False)
        else:
            out = self._forward(noisy, time, condition)
        return out[:, : x.shape[1]].to(self.dtype)  # a learned variance, where there is one, is left out

    def _forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        if self.by_name:
            out = self.model(hidden_states=noisy, timestep=time, encoder_hidden_states=condition)
        else:
            out = self.model(noisy, time, encoder_hidden_states=condition)
        return out if isinstance(out, Tensor) else out.sample
