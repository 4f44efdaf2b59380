"""The nouns on disk: one JSON object a line, validated in and out, every fault named by file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from stages.errors import UserError

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]  # not empty, not only white space


Said = Annotated[str, StringConstraints(pattern=r"\A")]  # any text that UTF-8 can hold


class Record(BaseModel):
    """A frozen row; unknown fields and NaN or infinite numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(Record):
    """One turn of a dialogue."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


class Completion(Record):
    """A text or an image that came with its prompt: a demonstration, or one side of somebody's preference."""

    text: Said = ""
    finished: bool = True  # False where generation was cut off: no end-of-sequence token belongs to it
    tokens: tuple[int, ...] = ()  # as sampled, where the policy's own tokenizer made them; else the text is encoded
    logps: tuple[FiniteFloat, ...] = ()  # as in Candidate: of each token, under the policy that drew it
    image: str = ""  # base64 of a picture file, where the answer is one
    latents: str = ""  # its denoising trajectory as sampled, base64 of float32 [T+1,c,h,w], where it was asked for
    score: FiniteFloat | None = None

    @model_validator(mode="after")
    def _is_something(self) -> Completion:
        if not (self.image or self.tokens or self.text.strip()):
            raise PydanticCustomError("empty", "neither a text nor an image")
        return self


class Prompt(Record):
    """What a policy answers. `given` holds the completions that came with it, if any."""

    id: Text
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    kind: str = ""  # kind of task, for reports by kind
    answer: str | None = None  # exact answer, where there is one
    reference: str = ""  # a good answer written by a person, where there is one; no policy is trained on it
    checks: dict[str, Any] = Field(default_factory=dict)  # verifiable wishes, see rewards/format.py
    given: tuple[Completion, ...] = ()

    def shown(self, text: str) -> str:
        """A text of this prompt or of an answer to it, as people may read it: not where `checks` say `withhold`.

        >>> Prompt(id="p", messages=({"role": "user", "content": "?"},), checks={"withhold": True}).shown("yes")
        '[withheld: p]'
        """
        return f"[withheld: {self.id}]" if self.checks.get("withhold") else text


class Candidate(Record):
    """One answer of a policy with its trajectory and, once labelled, all its scores."""

    id: Text  # "<prompt id>/<k>"
    prompt: Text  # id of the prompt
    text: Said = ""
    finished: bool = True  # the policy ended it itself
    tokens: tuple[int, ...] = ()
    image: str = ""  # as in Completion
    latents: str = ""
    logps: tuple[FiniteFloat, ...] = ()  # log-prob of each token under the policy at temperature 1, nats
    entropy: FiniteFloat | None = None  # mean over its tokens of the policy's entropy, nats
    scores: dict[str, FiniteFloat] = Field(default_factory=dict)  # by reward name, in the reward's own range
    score: FiniteFloat | None = None  # the weighted mix

    @property
    def blank(self) -> bool:
        """Whether there is nothing to learn from: no image, and no text but white space."""
        return not (self.image or self.text.strip())

    @property
    def content(self) -> str:
        """What it is told apart by: its image, else its text."""
        return self.image or self.text


class Pair(Record):
    """A pairwise preference, self-contained."""

    id: Text
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    chosen: Completion
    rejected: Completion
    prob: Annotated[float, Field(ge=0, le=1)] = 1.0  # P(chosen is preferred)
    margin: FiniteFloat = 0.0  # score of chosen minus score of rejected
    chosen_rate: Annotated[float, Field(ge=0, le=1)] = 0.75  # mean P(beats a candidate of its prompt), itself at 1/2
    rejected_rate: Annotated[float, Field(ge=0, le=1)] = 0.25


class Single(Record):
    """One completion with a binary label or a score."""

    id: Text
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    completion: Completion
    label: bool | None = None


class Ranking(Record):
    """Completions of one prompt, each with a score: a ranked group, best first."""

    id: Text
    messages: Annotated[tuple[Message, ...], Field(min_length=1)]
    completions: Annotated[tuple[Completion, ...], Field(min_length=2)]


AnyRecord = TypeVar("AnyRecord", bound=Record)


def fault(error: ValidationError) -> tuple[str, str]:
    """The first fault of a validation as (field, what is wrong with it)."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"]) or "row"
    return field, first["msg"]


def rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and JSON value of each non-blank line.

    Raises:
        UserError: the file is missing, is not UTF-8, or a line is not JSON.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, json.loads(line, parse_constant=_not_a_number)
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), mend="check it, or run the stage that writes it") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error.reason}", where=str(path), mend="save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=f"{path}:{number}", mend="mend or remove the line") from None


def _not_a_number(text: str) -> float:
    raise ValueError(f"{text} is not a number that JSON knows")


def read(path: Path, record: type[AnyRecord]) -> list[AnyRecord]:
    """Read a file that a stage wrote. A wrong row is an error, since a stage writes none.

    Raises:
        UserError: naming file, line and field.
    """
    found = []
    for number, row in rows(path):
        try:
            found.append(record.model_validate(row))
        except ValidationError as error:
            field, what = fault(error)
            where = f"{path}:{number}"
            raise UserError(f"{field}: {what}", where=where, mend="rerun the stage that writes it") from None
    return found


def write(path: Path, records: Iterable[Record]) -> None:
    """Write records one a line, defaults left out so that a reader's eye finds what is there."""
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(record.model_dump_json(exclude_defaults=True) + "\n")
