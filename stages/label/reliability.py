"""How far a guard agrees with people: its verdicts beside theirs. Only numbers are printed, no text.

    python -m stages.label.reliability FILE                what the rule says
    python -m stages.label.reliability FILE --model M      what a guard model says, a hub id or a local folder

FILE is .jsonl; each row has `prompt` and `completion` (texts) and `label`: true where people found the answer safe.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from pydantic import StrictBool, ValidationError

from stages import parts, records
from stages.errors import UserError
from stages.records import Candidate, Message, Prompt, Record, Text


class Vote(Record):
    """An answer with what people say of it."""

    prompt: Text
    completion: Text
    label: StrictBool  # safe


def reliability(said: Sequence[bool], votes: Sequence[bool]) -> dict[str, float]:
    """Agreement of a judge with people on which answers are unsafe (True).

    Precision and recall are of the unsafe ones: of what the judge calls unsafe the share that is, and of what is the
    share that it calls so; 0 where there is none. Kappa is (p_o - p_e) / (1 - p_e), with the share of agreement p_o
    and p_e what chance would give at the same rates; 1 where both say the same of all.

    Raises:
        UserError: nothing to compare.

    Two of four agree by chance as well as in fact:

    >>> told = reliability([True, True, False, False], [True, False, True, False])
    >>> [told[name] for name in ("accuracy", "precision", "recall", "kappa")]
    [0.5, 0.5, 0.5, 0.0]
    """
    from sklearn.metrics import accuracy_score, cohen_kappa_score, precision_score, recall_score

    if not votes:
        raise UserError("nothing to compare", where="reliability", mend="bring at least one answer with a vote")
    same = [*said] == [*votes]
    return {
        "accuracy": float(accuracy_score(votes, said)),
        "precision": float(precision_score(votes, said, zero_division=0)),
        "recall": float(recall_score(votes, said, zero_division=0)),
        "kappa": 1.0 if same else float(cohen_kappa_score(votes, said)),
        "unsafe": sum(votes) / len(votes),
        "n": float(len(votes)),
    }


def judged(votes: Sequence[Vote], model: str = "") -> list[bool]:
    """Whether the guard finds each answer unsafe."""
    prompts = [
        Prompt(id=str(i), messages=(Message(role="user", content=vote.prompt),), checks={"harmful": True})
        for i, vote in enumerate(votes)
    ]
    answers = [Candidate(id=f"{i}/0", prompt=str(i), text=vote.completion) for i, vote in enumerate(votes)]
    return [verdict <= 0.5 for verdict in parts.find("reward", "guard").function(prompts, answers, model=model)]


def read(path: Path) -> list[Vote]:
    """The rows of a file.

    Raises:
        UserError: naming file, line and field.
    """
    found = []
    for number, row in records.rows(path):
        try:
            found.append(Vote.model_validate(row))
        except ValidationError as error:
            field, what = records.fault(error)
            mend = "give each row prompt, completion and label"
            raise UserError(f"{field}: {what}", where=f"{path}:{number}", mend=mend) from None
    return found


def main(file: Path, model: str = "") -> None:
    """Print how far the guard agrees with the votes in FILE."""
    try:
        votes = read(file)
        for name, value in reliability(judged(votes, model), [not vote.label for vote in votes]).items():
            print(f"{name}: {value:.3f}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    typer.run(main)
