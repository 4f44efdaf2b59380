"""Linear layers on a CPU by oneDNN, a LoRA layer as one operation, and a gated block that keeps less.

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
    for module in model.modules():
        kind = type(module)
        if is_gated(module):
            module.__class__ = computed_by(kind, _gated)


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
    base, adapter = adapted(layer)
    if not adapter:
        return layer.base_layer(x)
    y = _Lora.apply(x.reshape(-1, base.in_features), base.weight, *adapter)
    return add(y, base.bias).view(*x.shape[:-1], base.out_features)


def _gated(mlp: Any, x: Tensor) -> Tensor:
    gate, up, (base, adapter) = mlp.gate_proj(x), mlp.up_proj(x), adapted(mlp.down_proj)
    rows = (values.reshape(-1, base.in_features) for values in (gate, up))
    y = _Gated.apply(*rows, mlp.act_fn, base.weight, *(adapter or (None, None, 1.0)))
    return add(y, base.bias).view(*x.shape[:-1], base.out_features)


def adapted(layer: Any) -> tuple[Any, tuple[Any, ...]]:
    """The linear layer itself, and A, B and s of the adapter on it where one is at work."""
    if type(layer).forward is _linear or layer.disable_adapters or layer.merged:
        return layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer, ()
    name = layer.active_adapters[0]
    return layer.get_base_layer(), (layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))


@torch.no_grad()
def is_gated(module: Any) -> bool:
    """Whether a block computes down(f(gate(x)) * up(x)) by layers of ours: it has the parts, and the values agree."""
    parts: list[Any] = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if not all(getattr(type(part), "forward", None) in (_linear, _lora) for part in parts) or not hasattr(
        module, "act_fn"
    ):
        return False
    gate, up, down = parts
    x = torch.linspace(-1, 1, gate.in_features).expand(ROWS, -1)
    return torch.equal(module(x), down(module.act_fn(gate(x)) * up(x)))


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


def through(x: Tensor, weight: Tensor, a: Any, b: Any, scale: float) -> tuple[Tensor, Tensor | None]:
    """The values y = x W^T + s (x A^T) B^T, the sum made in place, and x A^T `[n,r]`; both None without an adapter."""
    y = product(x, weight)
    if a is None:
        return y, None
    inner = product(x, a)
    return y.addmm_(inner, b.t(), alpha=scale), inner


def back(dy: Tensor, x: Tensor, weight: Tensor, a: Any, b: Any, inner: Any, scale: float, needs: Any) -> list[Any]:
    """Gradients by x, W, A and B of the values of `through`; by x and W where they are needed."""
    dy = dy.contiguous()
    by_x = product(dy, weight.t()) if needs[0] else None
    by_weight = outer(dy, x) if needs[1] else None
    if a is None:
        return [by_x, by_weight, None, None]
    by_inner = product(dy, b.t()).mul_(scale)  # [n,r]
    if by_x is not None:
        by_x.addmm_(by_inner, a)
    return [by_x, by_weight, outer(by_inner, x), outer(inner, dy).t().mul_(scale)]


class _Lora(torch.autograd.Function):
    """A layer with an adapter, of which only x A^T is kept."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, a: Any, b: Any, scale: float) -> Any:
        y, inner = through(x, weight, a, b, scale)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, weight, a, b, inner = ctx.saved_tensors
        return *back(grads[0], x, weight, a, b, inner, ctx.scale, ctx.needs_input_grad), None


class _Gated(torch.autograd.Function):
    """A layer of the input f(gate) * up, which is made again for the backward pass and never kept."""

    @staticmethod
    def forward(ctx: Any, gate: Any, up: Any, act: Any, weight: Any, a: Any, b: Any, scale: float) -> Any:
        y, inner = through(act(gate) * up, weight, a, b, scale)
        ctx.save_for_backward(gate, up, weight, a, b, inner)
        ctx.act, ctx.scale = act, scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gate, up, weight, a, b, inner = ctx.saved_tensors
        with torch.enable_grad():
            both = gate.detach().requires_grad_(), up.detach().requires_grad_()
            x = ctx.act(both[0]) * both[1]
        needs = (True, ctx.needs_input_grad[3])
        by_x, *others = back(grads[0], x.detach(), weight, a, b, inner, ctx.scale, needs)
        return *torch.autograd.grad(x, both, by_x), None, *others, None
