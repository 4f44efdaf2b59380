"""Chunked log-probs with a backward written by hand against the whole table and autograd."""

import pytest
import torch
from torch import nn

from stages.policies.text import head
from stages.policies.text.head import Head

N, D, V = 23, 8, 41
HEADS = {"plain": {}, "scaled": {"scale": 0.3}, "capped": {"softcap": 2.0}, "both": {"scale": 1.7, "softcap": 3.0}}


def given(dtype: torch.dtype, *, learns: bool, bias: bool):
    torch.manual_seed(0)
    hidden = torch.randn(N, D, dtype=dtype, requires_grad=True)
    weight = nn.Parameter(torch.randn(V, D, dtype=dtype), requires_grad=learns)
    offset = nn.Parameter(torch.randn(V, dtype=dtype), requires_grad=learns) if bias else None
    return hidden, weight, offset, torch.randint(V, (N,))


def table(hidden, weight, bias, scale=1.0, softcap=None):
    u = (hidden @ weight.t() + (0 if bias is None else bias)) * scale
    return (u if softcap is None else softcap * torch.tanh(u / softcap)).log_softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("kind", HEADS)
def test_values_and_gradients_equal_the_whole_table(kind, learns, bias, dtype, monkeypatch):
    monkeypatch.setattr(head, "ELEMENTS", 5 * V)  # five rows a chunk, the last one ragged
    hidden, weight, offset, targets = given(dtype, learns=learns, bias=bias)
    leaves = [x for x in (hidden, weight, offset) if x is not None and x.requires_grad]
    upstream = torch.linspace(-1, 1, N, dtype=dtype)
    whole = table(hidden, weight, offset, **HEADS[kind])
    logp = whole.gather(-1, targets[:, None]).squeeze(-1)
    expected = torch.autograd.grad((upstream * logp).sum(), leaves)
    told = head.log_probs(hidden, Head(weight, offset, **HEADS[kind]), targets, entropy=True, top_k=3)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    assert torch.allclose(told.logp, logp, rtol=0, atol=limit)
    assert torch.allclose(told.entropy, -(whole.exp() * whole).sum(-1), rtol=0, atol=limit)
    assert torch.allclose(told.top, whole.exp().topk(3).values, rtol=0, atol=limit)
    assert not told.entropy.requires_grad
    for found, wanted in zip(torch.autograd.grad((upstream * told.logp).sum(), leaves), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=0, atol=limit * max(1.0, float(wanted.abs().max())))


@pytest.mark.parametrize("learns", [False, True])
def test_finite_differences(learns):
    hidden, weight, offset, targets = given(torch.float64, learns=learns, bias=True)

    def logp(hidden, weight, offset):
        return head.log_probs(hidden, Head(weight, offset, 0.7, 4.0), targets).logp

    assert torch.autograd.gradcheck(logp, (hidden, weight, offset), eps=1e-6, atol=1e-7)


def test_no_tensor_of_all_logits_is_made_or_kept(monkeypatch):
    """Neither while the log-probs are computed nor for the backward pass: saved tensors are of the hidden's size."""
    hidden, weight, _, targets = given(torch.float32, learns=False, bias=False)
    monkeypatch.setattr(head, "ELEMENTS", 4 * V)
    made: list[int] = []
    logits = Head.logits
    monkeypatch.setattr(Head, "logits", lambda self, h: made.append(len(h)) or logits(self, h))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        head.log_probs(hidden, Head(weight), targets).logp.sum().backward()
    assert max(made) == 4
    assert sum(made) == N
    assert max(kept) <= N * D


def test_half_precision_gives_float32_log_probs():
    hidden, weight, _, targets = given(torch.bfloat16, learns=False, bias=False)
    told = head.log_probs(hidden, Head(weight), targets)
    wanted = table(hidden.float(), weight.float(), None).gather(-1, targets[:, None]).squeeze(-1)
    assert told.logp.dtype == torch.float32
    assert torch.allclose(told.logp, wanted, atol=0.05)
    told.logp.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16


def test_no_rows():
    hidden, weight, _, _ = given(torch.float32, learns=False, bias=False)
    told = head.log_probs(hidden[:0], Head(weight), torch.zeros(0, dtype=torch.long), entropy=True)
    assert told.logp.shape == told.entropy.shape == (0,)
