"""The text policy on a tiny real model: prices, draws, saves; the fast paths against plain ones."""

import math
from pathlib import Path

import pytest
import torch

from stages.batches import Item
from stages.errors import UserError
from stages.policies import tiny
from stages.policies.order import by_length
from stages.policies.text.policy import TextPolicy, TextSettings
from stages.records import Completion, Message, Prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.language_model(made)
    return made


@pytest.fixture(scope="module")
def policy(folder) -> TextPolicy:
    return TextPolicy.load(folder)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message(role="user", content="word " * (i + 1)),)) for i in range(count)]


def items(asked: list[Prompt], said: list[Completion]) -> list[Item]:
    return [Item(p.id, p.messages, c) for p, c in zip(asked, said, strict=True)]


def plain_log_prob(policy: TextPolicy, prompt: Prompt, completion: Completion) -> list[float]:
    """One row, no padding, the whole vocabulary at every position."""
    before, after = policy.encode(prompt.messages, completion)
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([before + after])).logits[0].double()
    table = logits.log_softmax(-1)
    return [float(table[len(before) - 1 + i, token]) for i, token in enumerate(after)]


def test_log_probs_equal_one_row_without_padding(policy):
    asked = prompts(4)
    said = [Completion(text="yes " * (3 * i + 1), finished=i % 2 == 0) for i in range(4)]
    steps = policy.log_probs(items(asked, said))
    for i, (prompt, completion) in enumerate(zip(asked, said, strict=True)):
        wanted = plain_log_prob(policy, prompt, completion)
        assert int(steps.mask[i].sum()) == len(wanted)
        assert steps.logp[i][steps.mask[i]].tolist() == pytest.approx(wanted, abs=1e-4)
        assert (steps.logp[i][~steps.mask[i]] == 0).all()


def test_the_end_token_belongs_to_a_finished_answer_only(policy):
    message = prompts(1)[0].messages
    open_end = policy.encode(message, Completion(text="ab", finished=False))[1]
    closed = policy.encode(message, Completion(text="ab", finished=True))[1]
    assert closed == [*open_end, policy.tokenizer.eos_token_id]


def test_the_prompt_gives_way_on_its_left(folder):
    short = TextPolicy.load(folder, TextSettings(max_length=20))
    before, after = short.encode(prompts(9)[8].messages, Completion(text="answer"))
    assert len(before) + len(after) == 20
    assert before == short.encode_prompt(prompts(9)[8].messages)[-len(before) :]


def test_sampled_log_probs_are_those_of_pricing(policy):
    asked = prompts(3)
    drawn = policy.sample(asked, 2, seed=1, max_new_tokens=10)
    assert [c.prompt for c in drawn] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    by_id = {p.id: p for p in asked}
    said = [Completion(text=c.text or "?", finished=c.finished, tokens=c.tokens) for c in drawn]
    steps = policy.log_probs(items([by_id[c.prompt] for c in drawn], said), entropy=True)
    for i, candidate in enumerate(drawn):
        assert steps.logp[i][steps.mask[i]].tolist() == pytest.approx(list(candidate.logps), abs=1e-4)
        assert float(steps.entropy[i].sum()) / len(candidate.tokens) == pytest.approx(candidate.entropy, abs=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(policy):
    asked = prompts(3)
    together = policy.sample(asked, 2, seed=5, temperature=0.9, top_p=0.9, max_new_tokens=12)
    alone = [c for p in asked for c in policy.sample([p], 2, seed=5, temperature=0.9, top_p=0.9, max_new_tokens=12)]
    assert [c.tokens for c in together] == [c.tokens for c in alone]
    assert policy.sample(asked, 2, seed=6, max_new_tokens=12) != policy.sample(asked, 2, seed=5, max_new_tokens=12)


def test_an_adapter_comes_back_as_it_was_saved(folder, tmp_path, policy):
    trained = TextPolicy.load(folder, trainable=True, lora_r=2, seed=3)
    for name, p in trained.parameters().items():
        if "lora_B" in name:
            p.data += 0.5
    trained.save(tmp_path / "adapter")
    priced = items(prompts(1), [Completion(text="some answer")])
    with torch.no_grad():
        wanted = trained.log_probs(priced).logp
        for how in ({}, {"trainable": True, "lora_r": 2}):  # folded into the weights; to be trained on
            read = TextPolicy.load(tmp_path / "adapter", **how).log_probs(priced).logp
            assert torch.allclose(read, wanted, atol=1e-4)
        assert not torch.allclose(policy.log_probs(priced).logp, wanted, atol=1e-2)


def test_all_weights_are_trained_and_saved_without_an_adapter(folder, tmp_path):
    whole = TextPolicy.load(folder, trainable=True)
    assert sum(p.numel() for p in whole.parameters().values()) == sum(p.numel() for p in whole.model.parameters())
    whole.save(tmp_path / "whole")
    assert (tmp_path / "whole/model.safetensors").is_file()
    assert (tmp_path / "whole/tokenizer.json").is_file()
    TextPolicy.load(tmp_path / "whole")


def test_next_token_logits_are_log_probs_of_the_first_tokens(policy):
    asked = prompts(3)
    told = policy.next_token_logits(asked, ["A", "B"])
    for i, prompt in enumerate(asked):
        wanted = [plain_log_prob(policy, prompt, Completion(text=word, finished=False))[0] for word in ("A", "B")]
        assert told[i].tolist() == pytest.approx(wanted, abs=1e-4)
    assert all(math.isfinite(value) for value in told.flatten().tolist())


def test_batches_by_length_hold_every_row_once_and_no_more_than_they_may():
    rows = [range(n) for n in (5, 1, 9, 3, 3, 7, 2)]
    batches = list(by_length(rows, tokens=12))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(len(rows[i]) for i in batch) <= 12 for batch in batches)


def test_tight_batches_hold_little_padding():
    """A 2 beside 1 pads to 4/3 of the real tokens, a 3 beside them to 9/6; a 5 beside two 3 to 15/11."""
    rows = [range(n) for n in (5, 1, 9, 3, 3, 7, 2)]
    batches = [[len(rows[i]) for i in batch] for batch in by_length(rows, tokens=100, waste=4 / 3)]
    assert batches == [[1, 2], [3, 3], [5, 7, 9]]
    assert [len(batch) for batch in by_length(rows, tokens=100, waste=1.0)] == [1, 1, 2, 1, 1, 1]


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no config.json"):
        TextPolicy.load(tmp_path)
