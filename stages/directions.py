"""Directions: how much a user wants of each of two rewards, told to the policy in a system message.

    Answer so that 92 * relevance + 38 * length is as high as it can be.

The words are names of rewards and the numbers 100 times a unit vector, rounded. The message is the only place where a
direction stands: it goes wherever its prompt goes, and whoever wants it reads it there.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from stages.config import Config
from stages.records import Message, Prompt

SENTENCE = "Answer so that {} * {} + {} * {} is as high as it can be."
STATED = re.compile(r"Answer so that (-?\d+) \* (\S+) \+ (-?\d+) \* (\S+) is as high as it can be\.")
Angle = Annotated[float, Field(ge=-180, le=180)]


class Directions(Config):
    """Two rewards, and the angles of prompts from the first to the second: degrees, 0 is the first alone."""

    first: Annotated[str, Field(pattern=r"^\S+$")]  # name of a reward on the panel
    second: Annotated[str, Field(pattern=r"^\S+$")]
    spread: Annotated[float, Field(gt=0, le=180)] = 45.0  # a training prompt's angle is uniform in -spread .. spread
    test: tuple[Angle, ...] = (-45.0, -22.5, 0.0, 22.5, 45.0)  # every held-out prompt is asked at each of these


def training(prompts: Sequence[Prompt], directions: Directions, seed: int) -> list[Prompt]:
    """Every prompt at an angle of its own, which does not depend on the other prompts."""
    angles = [random.Random(f"{seed}:direction:{p.id}").uniform(-directions.spread, directions.spread) for p in prompts]
    return [at(prompt, directions, angle) for prompt, angle in zip(prompts, angles, strict=True)]


def held_out(prompts: Sequence[Prompt], directions: Directions) -> list[Prompt]:
    """Every prompt at each of the angles of a test, named `<id>@<angle>`."""
    return [
        at(prompt, directions, angle).model_copy(update={"id": f"{prompt.id}@{angle:g}"})
        for prompt in prompts
        for angle in directions.test
    ]


def at(prompt: Prompt, directions: Directions, angle: float) -> Prompt:
    """The prompt with its direction in front, at the end of a system message that it has.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "?"},))
    >>> at(ask, Directions(first="relevance", second="length"), 22.5).messages[0].content
    'Answer so that 92 * relevance + 38 * length is as high as it can be.'
    """
    share = (math.cos(math.radians(angle)), math.sin(math.radians(angle)))
    one, two = (round(100 * each) for each in share)
    told = SENTENCE.format(one, directions.first, two, directions.second)
    messages = prompt.messages
    if messages[0].role == "system":
        told, messages = f"{messages[0].content}\n{told}", messages[1:]
    return prompt.model_copy(update={"messages": (Message(role="system", content=told), *messages)})


def stated(messages: Sequence[Message]) -> dict[str, float]:
    """The weight of each reward that system messages state, on the scale of a unit vector; nothing where none do.

    >>> stated((Message(role="system", content=SENTENCE.format(92, "relevance", -38, "length")),))
    {'relevance': 0.92, 'length': -0.38}
    """
    for message in messages:
        found = STATED.search(message.content) if message.role == "system" else None
        if found:
            one, first, two, second = found.groups()
            return {first: int(one) / 100, second: int(two) / 100}
    return {}
