"""Log-probs from hidden states without ever holding all logits: chunks of rows, and a backward written by hand.

For a row with hidden state h, logits u = W h + b, z = g(u) (a scale or a soft cap, else z = u) and target y:

    logp = z_y - logsumexp(z)          d logp / d u = (onehot(y) - softmax(z)) * g'(u)
    d logp / d h = W^T (d logp / d u)  entropy = logsumexp(z) - sum softmax(z) z

d logp / d h `[d]` does not depend on what the loss makes of logp, so the forward pass computes it while the chunk's
logits are there, and the backward pass is one product by the incoming gradient. Where the head itself learns, its
gradient does depend on it: then the backward pass makes each chunk's logits again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.policies.text.linear import product

ELEMENTS = 2**22  # logits of a chunk: 16 MiB in float32


@dataclass(frozen=True)
class Head:
    """The language-model head: weight `[v,d]` and what is done to its logits."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0  # logits are multiplied (Cohere) or divided (Granite) by a constant
    softcap: float | None = None  # logits become softcap * tanh(logit / softcap) (Gemma 2)

    def logits(self, hidden: Tensor) -> Tensor:
        """`[n,d] -> [n,v]` in float32 at least."""
        u = product(hidden, self.weight)
        u = u if self.bias is None else u + self.bias
        u = at_least_float(u)
        u = u if self.scale == 1.0 else u * self.scale
        return u if self.softcap is None else self.softcap * torch.tanh(u / self.softcap)

    def chain(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """Gradient by the logits to that by W h + b, in place."""
        if self.softcap is not None:
            gradient *= 1 - (logits / self.softcap).square_()
        return gradient if self.scale == 1.0 else gradient.mul_(self.scale)


@dataclass(frozen=True)
class Told:
    """What one pass over the vocabulary says of each row `[n]`."""

    logp: Tensor  # differentiable
    entropy: Tensor | None = None
    top: Tensor | None = None  # [n,k] probabilities of the k most likely tokens, the likeliest first


def of(model: Any) -> Head:
    """The head of a Hugging Face model."""
    layer, config = model.get_output_embeddings(), model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Head(layer.weight, getattr(layer, "bias", None), scale, None if cap is None else float(cap))


def log_probs(hidden: Tensor, head: Head, targets: Tensor, *, entropy: bool = False, top_k: int = 0) -> Told:
    """Log-prob of each target, float32 at least, differentiable by the hidden states and the head.

    Args:
        hidden: `[n,d]` states after the last norm.
        head: what makes logits of them.
        targets: `[n]` token ids.
        entropy: tell the entropy of each row's distribution, without a gradient.
        top_k: tell the probabilities of that many most likely tokens, without a gradient.
    """
    logp, spread, top = _LogProbs.apply(hidden, head.weight, head.bias, targets, head, entropy, top_k)
    return Told(logp, spread if entropy else None, top if top_k else None)


def at_least_float(values: Tensor) -> Tensor:
    """Half precision as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> Any:
        hidden, weight, bias, targets, head, entropy, top_k = given
        n = len(targets)
        learns = weight.requires_grad or (bias is not None and bias.requires_grad)
        now = hidden.requires_grad and not learns
        slope = torch.empty_like(hidden) if now else None  # d logp / d h
        shape = {"device": hidden.device, "dtype": at_least_float(hidden[:0]).dtype}
        logp, logz = torch.empty(n, **shape), torch.empty(n, **shape)
        spread = torch.empty(n if entropy else 0, **shape)
        top_k = min(top_k, len(weight))
        top = torch.empty((n if top_k else 0, top_k), **shape)
        for rows in chunks(n, len(weight)):
            z = head.logits(hidden[rows])
            logz[rows] = z.logsumexp(-1)
            logp[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - logz[rows]
            if not (entropy or top_k or slope is not None):
                continue
            probs = (z - logz[rows, None]).exp_()
            if entropy:
                spread[rows] = logz[rows] - torch.linalg.vecdot(probs, z)
            if top_k:
                top[rows] = probs.topk(top_k).values
            if slope is not None:
                slope[rows] = backward_product(towards(probs, targets[rows], z, head), weight, hidden.dtype)
        ctx.head, ctx.learns = head, learns
        ctx.save_for_backward(*((hidden, weight, bias, targets, logz) if learns else (slope,)))
        ctx.mark_non_differentiable(spread, top)
        return logp, spread, top

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        gradient = grads[0]
        if not ctx.learns:
            (slope,) = ctx.saved_tensors
            by_hidden = None if slope is None else slope * gradient[:, None].to(slope.dtype)
            return by_hidden, None, None, None, None, None, None
        hidden, weight, bias, targets, logz = ctx.saved_tensors
        by_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        by_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        by_bias = torch.zeros_like(bias) if ctx.needs_input_grad[2] else None
        for rows in chunks(len(targets), len(weight)):
            z = ctx.head.logits(hidden[rows])
            slope = towards((z - logz[rows, None]).exp_(), targets[rows], z, ctx.head) * gradient[rows, None]
            if by_hidden is not None:
                by_hidden[rows] = backward_product(slope, weight, hidden.dtype)
            if by_weight is not None:
                by_weight.addmm_(slope.to(weight.dtype).t(), hidden[rows])
            if by_bias is not None:
                by_bias += slope.sum(0).to(bias.dtype)
        return by_hidden, by_weight, by_bias, None, None, None, None


def towards(probs: Tensor, targets: Tensor, logits: Tensor, head: Head) -> Tensor:
    """Gradient of logp by W h + b of each row, made in the place of the probabilities."""
    slope = probs.neg_()
    slope.scatter_add_(-1, targets[:, None], torch.ones_like(slope[:, :1]))
    return head.chain(slope, logits)


def backward_product(slope: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`[n,v] -> [n,d]`."""
    return product(slope.to(weight.dtype), weight.t()).to(dtype)


def chunks(rows: int, vocabulary: int) -> list[slice]:
    """Slices of rows whose logits fit."""
    size = max(1, ELEMENTS // vocabulary)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
