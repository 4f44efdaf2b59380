"""Token credit of real answers: the text of every token, and the log-ratio that the tokens sum to."""

from pathlib import Path

import pytest
import torch

from stages import parts
from stages.batches import Item
from stages.config import Run
from stages.evaluate import answers, gather
from stages.panel import Panel, Tools
from stages.policies import family
from stages.policies.text.policy import TextPolicy
from stages.records import Completion, Message, Prompt

PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content="word " * (i + 1)),)) for i in range(3)]


def both(models: tuple[Path, Path], scratch: Path, max_new_tokens: int = 12) -> list[answers.Answers]:
    """What the stage does with the base and the final policy."""
    policies, run, panel = answers.chain(*models), Run(), Panel(rewards={"length": {}})
    sampler = parts.find("sampler", "temperature"), {"max_new_tokens": max_new_tokens}
    drawn = answers.sample(policies, sampler, None, PROMPTS, run, scratch, k=1, draws=1)
    base, found = family.load(run, models[0]), []
    for name, folder in policies:
        told = answers.price_drawn(base if name != "base" else None, PROMPTS, drawn[name], 1, name)
        found.append(answers.compare(name, folder, PROMPTS, drawn[name], drawn["base"], told, (panel, panel), Tools()))
    return found


def test_credit_sums_to_the_log_ratio_of_the_answer(models, tmp_path) -> None:
    base, final = both(models, tmp_path)
    policies = [TextPolicy.load(folder) for folder in models]
    for i, (prompt, said) in enumerate(zip(PROMPTS, final.candidates)):
        told = gather.token_credit(final, i)
        shown = Completion(text=said.text, tokens=said.tokens, finished=said.finished)
        with torch.no_grad():
            ref, own = (each.log_probs([Item("any", prompt.messages, shown)]).logp[0].tolist() for each in policies)
        assert [value for _, value in told] == pytest.approx([a - b for a, b in zip(own, ref)], abs=1e-4)
        columns = answers.columns(final, base)
        gap = columns["logp"][i] - columns["ref_logp"][i]
        assert sum(value for _, value in told) == pytest.approx(gap, abs=1e-5)
        assert len(told) == len(said.tokens)
    assert {value for i in range(3) for _, value in gather.token_credit(base, i)} == {0.0}


def test_samples_of_the_report_carry_it(models, tmp_path) -> None:
    base, final = both(models, tmp_path)
    found = gather.samples(PROMPTS, base, final)
    assert [sample.credit for sample in found] == [gather.token_credit(final, i) for i in range(3)]


def test_a_letter_of_several_tokens_stands_with_its_last_one(models) -> None:
    """The tiny tokenizer has a token for a byte: é takes two, 🙂 four, and what is no letter is shown as such."""
    policy = TextPolicy.load(models[0])
    ids = policy.tokenizer("aé 🙂.", add_special_tokens=False)["input_ids"]
    assert policy.pieces(ids) == ["a", "", "é", " ", "", "", "", "🙂", "."]
    torn = [*ids[:2], *ids[3:4], ids[-1]]  # the first byte of é, and no second one
    assert policy.pieces(torn) == ["a", "", "\ufffd ", "."]
    assert policy.pieces([policy.tokenizer.eos_token_id]) == ["<|im_end|>"]
    assert policy.pieces([]) == []
