"""The probabilities of the most likely tokens: packed as padded, beside the same log-probs, and nothing in padding."""

import pytest
import torch

from stages.batches import Item
from stages.policies import tiny
from stages.policies.text import plain
from stages.policies.text.policy import TextPolicy
from stages.records import Completion, Message

ASKED = (Message(role="user", content="What is two and two?"),)
ITEMS = [Item(str(n), ASKED, Completion(text=text)) for n, text in enumerate(["Four.", "It is four, I think."])]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> TextPolicy:
    folder = tmp_path_factory.mktemp("model")
    tiny.language_model(folder)
    return TextPolicy.load(folder)


def test_packed_and_padded_tell_the_same(policy):
    assert policy.packs()
    packed = policy.log_probs(ITEMS, top_k=5)
    padded = plain.log_probs(policy.model, policy.rows(ITEMS), policy.pad, top_k=5)
    assert packed.top.shape == (*packed.mask.shape, 5)
    torch.testing.assert_close(packed.top, padded.top, rtol=0, atol=1e-5)
    assert torch.equal(packed.logp, policy.log_probs(ITEMS).logp)
    assert not packed.top.requires_grad


def test_they_fall_sum_to_one_at_most_and_are_nothing_in_padding(policy):
    vocabulary = len(policy.tokenizer)
    for k in (1, 3, vocabulary + 7):
        steps = policy.log_probs(ITEMS, top_k=k)
        top, real = steps.top, steps.mask
        assert top.shape[-1] == min(k, policy.causal.get_input_embeddings().weight.shape[0])
        assert (top.diff(dim=-1) <= 0).all()
        assert (top[~real] == 0).all()
        assert (top[real][:, 0] >= steps.logp[real].exp() - 1e-6).all(), "no token is likelier than the likeliest"
    torch.testing.assert_close(top[real].sum(-1), torch.ones(int(real.sum())), rtol=0, atol=1e-4)


def test_without_asking_there_are_none(policy):
    assert policy.log_probs(ITEMS).top is None
