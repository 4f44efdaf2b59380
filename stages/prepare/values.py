"""What the shapes are made of: each function takes a value of any type and returns it checked, or raises a Fault."""

import math
import re
from decimal import Decimal
from typing import Any, get_args

from stages.records import Message

ROLES = get_args(Message.model_fields["role"].annotation)
TURN = re.compile(r"(?:\n\n|### ?)(Human|Assistant):")  # HH-RLHF writes dialogues as one string
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


class Fault(ValueError):
    """What is wrong with a row, and in which field."""

    def __init__(self, reason: str, field: str = "row") -> None:
        self.reason, self.field = reason, field
        super().__init__(f"{field}: {reason}")


def string(value: Any, field: str) -> str:
    """A string that says something."""
    if value is None:
        raise Fault("missing", field)
    if not isinstance(value, str):
        raise Fault("wrong type", field)
    if not value.strip():
        raise Fault("empty text", field)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Fault("not UTF-8", field) from None
    return value


def listed(value: Any, field: str) -> list:
    """A list that holds something."""
    if not isinstance(value, list):
        raise Fault("wrong type", field)
    if not value:
        raise Fault("empty list", field)
    return value


def objects(value: Any, field: str) -> list[dict]:
    """A list of GenEval's objects, what a table filled in with nothing left out."""
    found = []
    for i, one in enumerate(listed(value, field)):
        if not isinstance(one, dict) or not isinstance(one.get("class"), str):
            raise Fault("not an object with a class", f"{field}.{i}")
        found.append({name: said for name, said in one.items() if said is not None})
    return found


def number(value: Any, field: str) -> float:
    """A finite number, or a string that is one."""
    if value is None:
        raise Fault("missing", field)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise Fault("wrong type", field)
    try:
        found = float(value)
    except (ValueError, OverflowError):
        raise Fault("not a finite number", field) from None
    if not math.isfinite(found):
        raise Fault("not a finite number", field)
    return found


def truth(value: Any, field: str) -> bool:
    """True or False, also as 1 or 0, also as words."""
    found = TRUTH.get(str(value).lower()) if isinstance(value, bool | int | float | str) else None
    if found is None:
        raise Fault("neither true nor false", field)
    return found


def message(role: Any, content: Any, field: str) -> dict:
    """One turn. Content may be a list of text parts."""
    if role not in ROLES:
        raise Fault("unknown role", field)
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(string(part.get("text"), field) for part in content)
    return {"role": role, "content": string(content, field)}


def plain(value: Any) -> bool:
    """A string without `Human:` and `Assistant:` turns."""
    return isinstance(value, str) and not TURN.match(value)


def turns(value: Any, field: str, *, whole: bool = False) -> list[dict]:
    """The turns of a dialogue: a list of messages, a string with turns in it, or the user's one turn."""
    if plain(value):
        return [message("user", value, field)]
    if isinstance(value, str):
        said = TURN.split(value)[1:]
        if not whole and said[-2] == "Assistant" and not said[-1].strip():  # an open turn, for the policy to fill
            said = said[:-2] or ["Human", ""]
        roles = ({"Human": "user", "Assistant": "assistant"}[name] for name in said[::2])
        return [message(role, said_text.strip(), field) for role, said_text in zip(roles, said[1::2])]
    found = []
    for i, turn in enumerate(listed(value, field)):
        if not isinstance(turn, dict):
            raise Fault("wrong type", f"{field}.{i}")
        if turn.get("tool_calls"):
            raise Fault("not supported", f"{field}.{i}.tool_calls")
        found.append(message(turn.get("role"), turn.get("content"), f"{field}.{i}"))
    return found


def dialogue(head: list[dict], value: Any, field: str) -> list[dict]:
    """The whole dialogue of one side: `value` is its last turn, or what follows the prompt, or all of it."""
    if plain(value):
        return [*head, message("assistant", value, field)]
    said = turns(value, field, whole=True)
    return said if head and head[-1] in said[:-1] else [*head, *said]


def last(value: Any, field: str) -> str:
    """The text of a completion: a string, or a dialogue of one assistant turn."""
    if not isinstance(value, list):
        return string(value, field)
    said = turns(value, field)
    if [turn["role"] for turn in said] != ["assistant"]:
        raise Fault("not one turn of the assistant", field)
    return said[0]["content"]


def given(text: str, score: float | None = None) -> dict:
    """A completion that came with the data."""
    return {"text": text, "score": score}


def rating(row: dict, field: str) -> float:
    """Mean rating over the aspects that were rated, else the overall score."""
    aspects = row.get("annotations")
    found = (
        [aspect.get("Rating") for aspect in aspects.values() if isinstance(aspect, dict)]
        if isinstance(aspects, dict)
        else []
    )
    rated = [number(value, f"{field}.annotations") for value in found if value not in (None, "N/A")]
    return sum(rated) / len(rated) if rated else number(row.get("overall_score"), f"{field}.overall_score")


def wishes(answer: Any, reference: Any, checks: Any) -> dict:
    """The optional fields of a prompt that a user may state."""
    if not isinstance(answer, str | int | float | None):
        raise Fault("wrong type", "answer")
    if not isinstance(checks or {}, dict):
        raise Fault("wrong type", "checks")
    return {
        "answer": None if answer is None else str(answer),
        "reference": "" if reference is None else string(reference, "reference"),
        "checks": checks or {},
    }
