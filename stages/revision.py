"""Asking a policy to revise an answer: the dialogue that the generate stage and training share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stages.records import Message, Pair

WISH = "Revise your last answer so that it is better. Reply with the revised answer only."
NOTHING = "..."  # stands for an answer of nothing but white space, which no message may be


def asked(messages: Sequence[Message], answer: str) -> tuple[Message, ...]:
    """The dialogue with an answer and the wish for a better one.

    >>> [m.content for m in asked([Message(role="user", content="Hm?")], "What?")]
    ['Hm?', 'What?', 'Revise your last answer so that it is better. Reply with the revised answer only.']
    """
    given = Message(role="assistant", content=answer if answer.strip() else NOTHING)
    return (*messages, given, Message(role="user", content=WISH))


@dataclass(frozen=True)
class Revision:
    """A pair of answers to a prompt, and the same two as revisions of the chosen and of the rejected one."""

    pairs: tuple[Pair, Pair, Pair]


def of(pair: Pair) -> Revision:
    """What an objective that learns to revise makes of a pair."""
    given = {"chosen": pair.chosen, "rejected": pair.rejected}
    chosen, rejected = (
        pair.model_copy(update={"id": f"{pair.id}:of-{name}", "messages": asked(pair.messages, side.text)})
        for name, side in given.items()
    )
    return Revision((pair, chosen, rejected))
