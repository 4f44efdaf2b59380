"""Answers and what they are revised into: the dialogues, the batch, the reference's cache, and a step of SRPO."""

from pathlib import Path

import pytest
import torch

from stages import feed, parts, revision
from stages.batches import Item, Revisions
from stages.config import Choice
from stages.errors import UserError
from stages.learn import Optimize, learn
from stages.policies import tiny
from stages.policies.text.policy import TextPolicy
from stages.records import Completion, Message, Ranking
from stages.revision import WISH
from tests.test_loop import Notes, pairs

PAIRS = pairs(4)
SRPO = parts.find("objective", "srpo")


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> TextPolicy:
    return TextPolicy.load(model(tmp_path_factory.mktemp("model")))


def model(folder: Path) -> Path:
    tiny.language_model(folder)
    return folder


def wanted() -> list:
    return feed.examples(SRPO, PAIRS, where="labels")


def test_a_revision_is_asked_for_after_the_answer():
    (one, *_) = wanted()
    plain, of_chosen, of_rejected = one.pairs
    assert plain == PAIRS[0]
    for pair, given in ((of_chosen, plain.chosen), (of_rejected, plain.rejected)):
        *before, answer, wish = pair.messages
        assert tuple(before) == plain.messages
        assert (answer.role, answer.content) == ("assistant", given.text)
        assert (wish.role, wish.content) == ("user", WISH)
        assert (pair.chosen, pair.rejected) == (plain.chosen, plain.rejected)


def test_an_answer_of_white_space_can_be_revised_too():
    assert revision.asked(PAIRS[0].messages, " \n")[-2].content.strip()


def test_all_six_have_names_of_their_own_and_the_answers_keep_theirs():
    names = [item.id for item in feed.items(wanted()[0])]
    assert names[:2] == [item.id for item in feed.items(PAIRS[0])]
    assert len(set(names)) == 6


def test_the_batch_holds_each_answer_after_each_other(policy):
    batch = feed.batch(policy, wanted(), (), None, soft=True)
    assert isinstance(batch, Revisions)
    told = {"answers": lambda p: p.messages, "of_chosen": lambda p: revision.asked(p.messages, p.chosen.text)}
    told["of_rejected"] = lambda p: revision.asked(p.messages, p.rejected.text)
    for name, messages in told.items():
        for side in ("chosen", "rejected"):
            items = [Item("", messages(pair), getattr(pair, side)) for pair in PAIRS]
            alone, found = policy.log_probs(items), getattr(getattr(batch, name), side)
            torch.testing.assert_close(found.logp * found.mask, alone.logp * alone.mask, rtol=1e-4, atol=1e-4)
    assert batch.answers.prob.tolist() == [1.0] * 4
    assert feed.batch(policy, wanted(), (), None).answers.prob is None


def test_at_the_reference_both_losses_are_a_quarter(policy):
    cache = feed.reference(policy, feed.at_draws(policy, wanted(), 1))
    loss, _ = SRPO.function(feed.batch(policy, wanted(), ("reference",), cache))
    assert loss.tolist() == pytest.approx([0.25] * 4, abs=1e-4)


def test_training_lowers_both_losses_and_names_a_cache_without_revisions(policy, tmp_path):
    learner = TextPolicy.load(model(tmp_path), trainable=True, lora_r=2, seed=0)
    given = {"num_train_epochs": 8, "learning_rate": 1e-2, "per_device_train_batch_size": 2}
    settings = Optimize(objective=Choice(name="srpo"), **given)
    notes = Notes(tmp_path / "metrics.jsonl")
    told = {"seed": 4, "scratch": tmp_path, "journal": notes, "label": "srpo"}
    with pytest.raises(UserError, match="no reference log-probs of 'p./0-1:of-.*reference.revisions"):
        learn(learner, PAIRS, settings, feed.reference(policy, feed.at_draws(policy, PAIRS, 1)), **told)
    learn(learner, PAIRS, settings, feed.reference(policy, feed.at_draws(policy, wanted(), 1)), **told)
    for name in ("loss/generator", "loss/improver"):
        assert notes.rows[-1][name] < notes.rows[0][name] - 0.05, name
    assert notes.rows[-1]["revisions/margins"] > 0


def test_only_pairs_can_be_revised():
    scored = tuple(Completion(text=text, score=score) for text, score in (("a", 1.0), ("b", 0.0)))
    ranking = Ranking(id="r", messages=(Message(role="user", content="Hm?"),), completions=scored)
    with pytest.raises(UserError, match="objective 'srpo' takes pairs, a label is a ranking"):
        feed.examples(SRPO, [ranking], where="labels")
