"""Linear layers on a CPU by oneDNN, and a LoRA layer as one operation.

PyTorch's default BLAS keeps to AVX2 on processors that are not Intel's; oneDNN uses what is there, on plain weights in
either orientation, so that nothing is copied or repacked. Values agree to the rounding of float32. Elsewhere (GPU,
other types) `product` is the usual product.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 2  # with fewer a matrix-vector product is faster


def available() -> bool:
    """Whether oneDNN can be called."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(x: Tensor, weight: Tensor) -> Tensor:
    """The product x W^T, without a gradient of its own: `[n,i], [o,i] -> [n,o]`."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and len(x) >= ROWS and x.is_contiguous() and available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return x @ weight.t()


def speed_up(model: nn.Module) -> None:
    """Let every linear layer of a float32 model on a CPU compute by `product`, LoRA layers included."""
    if not available():
        return
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.device.type != "cpu" or weight.dtype != torch.float32:
            continue
        kind: Any = type(module)
        if kind is nn.Linear:
            module.__class__ = computed_by(kind, _linear)
        elif kind.__name__ == "Linear" and hasattr(module, "lora_A") and plain(module):
            module.__class__ = computed_by(kind, _lora)


@cache
def computed_by(kind: Any, forward: Any) -> Any:
    """A class of layers with another forward; a bound method in the layer would keep it alive in a circle."""
    return type(kind.__name__, (kind,), {"forward": forward})


def plain(layer: Any) -> bool:
    """Whether a PEFT layer is W + s B A and nothing else."""
    names = layer.active_adapters
    return (
        isinstance(layer.get_base_layer(), nn.Linear)
        and len(names) == 1
        and names[0] in layer.lora_A
        and isinstance(layer.lora_dropout[names[0]], nn.Identity)
        and not layer.use_dora.get(names[0], False)
        and not layer.lora_bias.get(names[0], False)
    )


def _linear(layer: Any, x: Tensor) -> Tensor:
    rows = x.reshape(-1, layer.in_features)
    return add(_Linear.apply(rows, layer.weight), layer.bias).view(*x.shape[:-1], layer.out_features)


def _lora(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if layer.disable_adapters or layer.merged:
        return layer.base_layer(x)
    name, base = layer.active_adapters[0], layer.get_base_layer()
    rows = x.reshape(-1, base.in_features)
    y = _Lora.apply(rows, base.weight, layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))
    return add(y, base.bias).view(*x.shape[:-1], base.out_features)


def add(y: Tensor, bias: Tensor | None) -> Tensor:
    """With the bias, where there is one."""
    return y if bias is None else y + bias


def outer(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient by W of x W^T: `[n,o], [n,i] -> [o,i]`; the narrow side comes first, it is copied."""
    return product(dy.t().contiguous(), x.t())


class _Linear(torch.autograd.Function):
    """Computes y = x W^T."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return product(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dy,), (x, weight) = grads, ctx.saved_tensors
        by_x = product(dy.contiguous(), weight.t()) if ctx.needs_input_grad[0] else None
        by_weight = outer(dy, x) if ctx.needs_input_grad[1] else None
        return by_x, by_weight


class _Lora(torch.autograd.Function):
    """Computes y = x W^T + s (x A^T) B^T: the sum is made in place; of the adapter only x A^T is kept."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, a: Any, b: Any, scale: float) -> Any:
        inner = product(x, a)  # [n,r]
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return product(x, weight).addmm_(inner, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, a, b, inner = ctx.saved_tensors
        dy, scale = grads[0].contiguous(), ctx.scale
        by_inner = product(dy, b.t()).mul_(scale)  # [n,r]
        by_a = outer(by_inner, x)
        by_b = outer(inner, dy).t().mul_(scale)
        by_x = by_weight = None
        if ctx.needs_input_grad[0]:
            by_x = product(dy, weight.t()).addmm_(by_inner, a)
        if ctx.needs_input_grad[1]:
            by_weight = outer(dy, x)
        return by_x, by_weight, by_a, by_b, None
