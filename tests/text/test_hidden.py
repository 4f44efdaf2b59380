"""Hidden states that tokens are taken from, packed as padded; and the piece of text that each token adds."""

import math

import pytest
import torch
from transformers import ByT5Tokenizer

from stages import feed
from stages.batches import Item
from stages.policies import tiny
from stages.policies.text import head, plain
from stages.policies.text.pieces import pieces
from stages.policies.text.policy import TextPolicy
from stages.records import Completion, Message, Pair

ASKED = (Message(role="user", content="What is two and two?"),)
TEXTS = ["Four.", "It is green tea, I think.", "caf\u00e9 \u4e2d\u6587"]
ITEMS = [Item(str(n), ASKED, Completion(text=text)) for n, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> TextPolicy:
    folder = tmp_path_factory.mktemp("model")
    tiny.language_model(folder)
    return TextPolicy.load(folder, trainable=True, lora_r=2, seed=0)


def test_packed_and_padded_tell_the_same_and_send_back_the_same(policy):
    assert policy.packs()
    found = []
    for steps in (
        policy.log_probs(ITEMS, hidden=True),
        plain.log_probs(policy.model, policy.rows(ITEMS), policy.pad, hidden=True),
    ):
        noise = torch.randn(steps.hidden.shape, generator=torch.Generator().manual_seed(0))
        loss = (steps.hidden * noise * steps.mask[..., None]).sum() + steps.logp.sum()
        found.append((steps, torch.autograd.grad(loss, list(policy.parameters().values()))))
    (packed, ours), (padded, theirs) = found
    assert packed.hidden.shape == (*packed.mask.shape, 32)
    torch.testing.assert_close(packed.hidden, padded.hidden, rtol=0, atol=1e-5)
    assert any(slope.abs().max() > 0.1 for slope in theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_token_is_taken_from_its_own_state(policy):
    """The head makes the token's log-prob of it."""
    steps = policy.log_probs(ITEMS, hidden=True)
    for states, logps, real, (_, answer) in zip(steps.hidden, steps.logp, steps.mask, policy.rows(ITEMS), strict=True):
        logits = head.of(policy.causal).logits(states[real])
        taken = logits.log_softmax(-1)[range(len(answer)), list(answer)]
        torch.testing.assert_close(taken, logps[real], rtol=0, atol=1e-5)
    assert (steps.hidden[~steps.mask] == 0).all()


def test_without_asking_there_are_none(policy):
    assert policy.log_probs(ITEMS).hidden is None
    assert torch.equal(policy.log_probs(ITEMS).logp, policy.log_probs(ITEMS, hidden=True).logp)


def test_the_pieces_make_the_text(policy):
    for item, (_, answer) in zip(ITEMS, policy.rows(ITEMS), strict=True):
        told = pieces(policy.tokenizer, answer, special=False)
        assert "".join(told) == item.completion.text
        assert len(told) == len(answer)
        assert told[-1] == "", "the end of the turn"


def test_sampled_tokens_are_told_as_they_were_drawn(policy):
    """The record's text lost the space at its front; the tokens did not."""
    tokens = (*policy.tokenizer(" tea", add_special_tokens=False)["input_ids"], policy.tokenizer.eos_token_id)
    assert pieces(policy.tokenizer, tokens, special=False) == [" ", "t", "e", "a", ""]
    item = Item("0", ASKED, Completion(text="tea", tokens=tokens))
    assert policy.key_ranks([item]) == [[math.inf, 1.0, 1.0, 1.0, math.inf]]


def test_a_tokenizer_of_bytes_tells_them_too():
    tokenizer = ByT5Tokenizer()
    assert pieces(tokenizer, tokenizer("h\u00e9").input_ids, special=False) == ["h", "", "\u00e9", ""]


def test_a_batch_holds_them_where_they_are_needed(policy):
    pair = Pair(id="p", messages=ASKED, chosen=ITEMS[1].completion, rejected=ITEMS[0].completion)
    bare, full = (feed.batch(policy, [pair], needs, None) for needs in ((), ("hidden", "key_rank")))
    assert bare.chosen.hidden is bare.chosen.key_rank is None
    assert full.chosen.hidden.shape == (*full.chosen.mask.shape, 32)
    phrases = {"It is ": math.inf, "green tea": 0.5, ", I ": math.inf, "think": 1.0, ".": math.inf, "\0": math.inf}
    assert full.chosen.key_rank[0].tolist() == [rank for piece, rank in phrases.items() for _ in piece]
    assert full.rejected.key_rank[0].tolist() == [1.0] * len("Four") + [math.inf] * 2  # a mark, and the end
