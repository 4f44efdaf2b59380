"""Blocks of packed trees against attention over the whole sequence under one mask."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.policies.text import blocks
from stages.policies.text.attention import Scores
from stages.policies.text.packing import Trees

TREES = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=5), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(TREES, st.integers(1, 40))
def test_every_query_stands_once_and_none_of_its_keys_is_missing(trees, rows):
    known, blocks.ROWS = blocks.ROWS, rows
    try:
        found = list(blocks.blocks(trees))
    finally:
        blocks.ROWS = known
    total = sum(map(sum, trees))
    assert [i for b in found for i in range(b.queries.start, b.queries.stop)] == list(range(total))
    seen = Trees(tuple(map(tuple, trees))).sees(None, torch.device("cpu"))
    place = torch.arange(total)
    matrix = seen(place[:, None], place)
    for block in found:
        held = {i for each in block.keys for i in range(each.start, each.stop)}
        assert len(held) == sum(each.stop - each.start for each in block.keys)
        assert set(matrix[block.queries].any(0).nonzero().flatten().tolist()) <= held


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("sizes", [((9, 4, 6), (3,), (2, 1, 1, 8)), ((40,),), ((1, 1),)])
def test_values_and_gradients_equal_those_under_one_mask(sizes, window, monkeypatch):
    monkeypatch.setattr(blocks, "ROWS", 5)
    torch.manual_seed(0)
    trees, total = Trees(sizes), sum(map(sum, sizes))
    given = [torch.randn(1, h, total, 8, dtype=torch.float64, requires_grad=True) for h in (4, 2, 2)]
    weigh = torch.randn(1, total, 4, 8, dtype=torch.float64)
    fast = trees.attend(0, *given, Scores(0.3, window))
    place = torch.arange(total)
    seen = trees.sees(window, torch.device("cpu"))(place[:, None], place)
    query, key, value = (x.repeat_interleave(4 // x.shape[1], 1) for x in given)
    logits = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~seen, float("-inf"))
    slow = (logits.softmax(-1) @ value).transpose(1, 2)
    assert torch.allclose(fast, slow, rtol=0, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad((out * weigh).sum(), given) for out in (fast, slow)), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
