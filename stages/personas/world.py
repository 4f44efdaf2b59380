"""Made-up people: what is true of each, questions to them, and answers that agree, contradict or say nothing.

Names, values, questions and answers that are held out occur in no training prompt and in no training example.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ruamel.yaml import YAML

from stages.records import Message, Prompt

Split = Literal["train", "test"]
CONTRADICT, NEUTRAL, ENTAIL = 0, 1, 2  # what an answer does to a statement
HELD = {"values": 3, "ask": 1, "answer": 1}  # how many of a fact's are held out, the last ones
NAMES = 4  # of the names
KNOWN, ACTIVE = 8, 0.75  # statements of a person; share of questions that one of them answers


class Stance(NamedTuple):
    """An answer to a question, and what it does to a statement."""

    statement: str
    question: str
    answer: str
    label: int


@cache
def told() -> dict[str, Any]:
    """facts.yaml."""
    return YAML(typ="safe").load(Path(__file__).with_name("facts.yaml"))


def of(split: Split, fact: str, what: str) -> list[str]:
    """The values, questions or answers of a fact that belong to a split."""
    every, held = told()["facts"][fact][what], HELD[what]
    return every[-held:] if split == "test" else every[:-held]


def names(split: Split) -> list[str]:
    """The names that belong to a split."""
    return told()["names"][-NAMES:] if split == "test" else told()["names"][:-NAMES]


def state(name: str, fact: str, value: str) -> str:
    """A statement about a person."""
    return told()["facts"][fact]["state"].format(name=name, x=value)


def stances(split: Split, seed: int = 0) -> list[Stance]:
    """Labelled examples, every value of every fact in turn: its answers, another value's, and answers beside it."""
    rng, found = random.Random(f"stances/{split}/{seed}"), []
    for fact in told()["facts"]:
        values = of(split, fact, "values")
        for value in values:
            for other in (one for one in values if one != value):
                statement, question = state(rng.choice(names(split)), fact, value), rng.choice(of(split, fact, "ask"))
                answer = rng.choice(of(split, fact, "answer"))
                elsewhere = rng.choice([one for one in told()["facts"] if one != fact])
                beside = rng.choice(of(split, elsewhere, "answer")).format(x=rng.choice(of(split, elsewhere, "values")))
                found += [
                    Stance(statement, question, answer.format(x=value), ENTAIL),
                    Stance(statement, question, answer.format(x=other), CONTRADICT),
                    Stance(statement, question, rng.choice(told()["asides"]), NEUTRAL),
                    Stance(statement, rng.choice(of(split, elsewhere, "ask")), beside, NEUTRAL),
                ]
    return found


def relevances(split: Split, seed: int = 0) -> list[tuple[str, str, bool]]:
    """Statement, question, and whether the one answers the other: as many that do as do not."""
    rng, found = random.Random(f"relevances/{split}/{seed}"), []
    for fact in told()["facts"]:
        for value in of(split, fact, "values"):
            for other in rng.sample([one for one in told()["facts"] if one != fact], 3):
                statement = state(rng.choice(names(split)), fact, value)
                found.append((statement, rng.choice(of(split, fact, "ask")), True))
                found.append((statement, rng.choice(of(split, other, "ask")), False))
    return found


def prompts(split: Split, count: int, seed: int) -> list[Prompt]:
    """Questions to people of eight statements each; `checks` holds them and `reference` an answer that fits.

    A quarter of the questions are about something that no statement tells: nothing true can be said of it.
    """
    rng = random.Random(f"personas/{split}/{seed}")
    return [_prompt(split, number, name, rng) for number, name in enumerate(islice(cycle(names(split)), count))]


def _prompt(split: Split, number: int, name: str, rng: random.Random) -> Prompt:
    facts = rng.sample([*told()["facts"]], KNOWN + 1)
    known = {fact: rng.choice(of(split, fact, "values")) for fact in facts[:KNOWN]}
    active = rng.random() < ACTIVE
    fact = facts[0] if active else facts[KNOWN]
    statements = [state(name, one, known[one]) for one in rng.sample([*known], KNOWN)]
    answer = rng.choice(of(split, fact, "answer")).format(x=known[fact]) if active else told()["asides"][0]
    role = f"You play {name}. All that is known of {name}: {' '.join(statements)} Answer as {name}, in one sentence."
    asked = Message(role="user", content=rng.choice(of(split, fact, "ask")))
    return Prompt(
        id=f"persona-{split}-{number:04d}",
        messages=(Message(role="system", content=role), asked),
        kind="active" if active else "passive",
        reference=answer if active else "",
        checks={"persona": statements},
    )
