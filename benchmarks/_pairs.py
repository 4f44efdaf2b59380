"""Preference pairs to train on: people's, from a file, or made-up ones with long prompts and short answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._contest import ROOT
from stages.errors import UserError
from stages.records import Completion, Message, Pair

DATA = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless-test.jsonl.gz"
WORDS = "the small river carries its water past old towns and green hills while people there talk about work and rain"


def people(file: Path) -> Iterator[Pair]:
    """Pairs of a file in any shape that the prepare stage reads and that brings two completions."""
    from stages.prepare.readers import read_prompts

    with TemporaryDirectory() as folder:
        prompts = read_prompts(file, quarantine=Path(folder) / "refused.jsonl").prompts
    for prompt in prompts:
        if len(prompt.given) == 2:
            better, worse = sorted(prompt.given, key=lambda said: -(said.score or 0.0))
            yield pair(prompt.id, prompt.messages, better.text, worse.text)


def made_up(prompt: tuple[int, int], answer: tuple[int, int], seed: int = 0) -> Iterator[Pair]:
    """Pairs of random words without end, of as many words as the ranges say."""
    rng, words = random.Random(seed), WORDS.split()

    def text(count: tuple[int, int]) -> str:
        return " ".join(rng.choices(words, k=rng.randint(*count)))

    number = 0
    while True:
        yield pair(f"p{number}", (Message(role="user", content=text(prompt)),), text(answer), text(answer))
        number += 1


def pair(name: str, messages: tuple[Message, ...], chosen: str, rejected: str) -> Pair:
    """A pair of answers without white space around them: TRL tokenizes prompt and answer as one text."""
    sides = [Completion(text=text.strip() or "-") for text in (chosen, rejected)]
    return Pair(id=name, messages=messages, chosen=sides[0], rejected=sides[1])


def fitting(policy: Any, found: Iterator[Pair], count: int, longest: int, *, seed: int = 0) -> list[Pair]:
    """A random choice of those that both sides tokenize alike and that nobody cuts.

    Raises:
        UserError: too few.
    """
    kept: list[Pair] = []
    for one in shuffled(found, seed):
        if one.chosen != one.rejected and all(fits(policy, one, side, longest) for side in (one.chosen, one.rejected)):
            kept.append(one)
        if len(kept) == count:
            return kept
    what = f"{len(kept)} pairs of at most {longest} tokens, {count} wanted"
    raise UserError(what, where="--data", mend="name another file, or ask for fewer")


def shuffled(found: Iterator[Pair], seed: int) -> list[Pair]:
    """The first thousands in a random order."""
    some = [one for one, _ in zip(found, range(5000))]
    random.Random(seed).shuffle(some)
    return some


def fits(policy: Any, one: Pair, said: Completion, longest: int) -> bool:
    """Whether an answer's tokens are the same alone and after its prompt, and fit beside it."""
    row = texts(policy, one)
    prompt, answer = policy.encode(one.messages, said)
    whole = policy.tokenizer(row["prompt"] + said.text + policy.tokenizer.eos_token, add_special_tokens=False)
    return whole["input_ids"] == [*prompt, *answer] and len(prompt) + len(answer) <= longest


def texts(policy: Any, one: Pair) -> dict[str, str]:
    """A pair as TRL's standard form takes it: the rendered prompt, and both answers with their end."""
    end = policy.tokenizer.eos_token
    turns = [message.model_dump() for message in one.messages]
    prompt = policy.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return {"prompt": prompt, "chosen": one.chosen.text + end, "rejected": one.rejected.text + end}
