"""Read users' files into prompts; a row that cannot become one goes to a quarantine file and is counted.

| shape (shapes.py) | columns | becomes |
|---|---|---|
| prompt | prompt, answer?, reference?, checks? | no completion |
| demonstration | prompt, completion | one completion |
| unpaired | prompt, completion, label | one completion, score 1 or 0 |
| stepwise | prompt, completions[], labels[] | one completion, score = share of true labels |
| preference | chosen, rejected, prompt?, score_chosen/_rejected? | two completions, scores 1 and 0 if not stated |
| messages | messages[], answer?, reference?, checks? | the last turn, if the assistant's, is the completion |
| text | text with `Human:` and `Assistant:` turns | likewise |
| ultrafeedback | instruction, completions[] | all completions, score = mean rating, else overall_score |
| alpaca | instruction, input?, output | one completion |
| judged | instruction, output_1, output_2, preference | two completions, scores 2 - preference, preference - 1 |
| mt_bench | question_id, turns[], reference[]? | the first turn only |
| gsm8k | question, answer ending in `#### N` | `answer` N, the working as `reference` |
| parti | Prompt | a caption |
| geneval | tag, include, prompt, exclude? | a caption, what must be in its picture as `checks` |
| request | request, topics[], safe?, benign? | what to refuse (what to answer where benign), for attacks.py |
| captioned | caption, image, score? | an image |
| image_preference | prompt, chosen_image, rejected_image, score_chosen/_rejected? | two images, likewise |
| pick_a_pic | caption, jpg_0, jpg_1, label_0, label_1, has_label?, ... | two images, scored by their labels |

Any text may be a string or a list of `{role, content}`; an image is the bytes of a picture file, `{bytes, path}` or
base64. Images in a prompt, tools and tool calls have no place in a Prompt and are refused; so are Pick-a-Pic's ties,
unless `ties` is `keep`. A column that the shape does not take is ignored, save the first of `IDS` and of `KINDS`.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from stages.errors import UserError, nearest
from stages.prepare.shapes import SHAPES, options, takes
from stages.prepare.sources import raw_rows
from stages.prepare.values import Fault, string
from stages.records import Prompt, fault

IDS = ("id", "prompt_id", "question_id")
KINDS = ("kind", "subset", "category", "Category", "tag", "dataset", "source")
REFUSED = ("images", "image", "tools")  # columns that change what a prompt means
HEAD = 100  # rows whose columns decide the shape
SHOWN = 500  # characters of a refused row that the quarantine file keeps


@dataclass(frozen=True)
class Read:
    """What became of a file: every row that is not blank is a prompt or is refused."""

    prompts: list[Prompt]
    refused: int
    by_reason: Counter[str]


def read_prompts(
    path: Path,
    *,
    shape: str = "auto",
    columns: dict[str, str] = {},  # noqa: B006 - only read
    quarantine: Path,
    max_chars: int = 20_000,
    limit: int | None = None,
    ties: Literal["drop", "keep"] = "drop",
) -> Read:
    """Read one file of prompts.

    Args:
        path: .jsonl, .json (a list), .parquet, .csv or .tsv (no quoting); the first two also with .gz.
        shape: a name of the table above, or `auto`: told from the columns of the first rows.
        columns: expected column name -> the name that the file gives it.
        quarantine: file for the refused rows, written anew: file, line, field, reason, row. The line is the row's
            number in .json and .parquet.
        max_chars: a row with a longer text is refused.
        limit: stop after this many prompts; what follows is neither read nor counted.
        ties: whether a pair of images that nobody preferred is refused (reason `tie`) or kept, both with score 0.5.

    Raises:
        UserError: unreadable file, unknown or ambiguous shape, or no row that can be used.
    """
    source = raw_rows(path)
    head = list(islice(source, HEAD))
    name = pick(shape, columns, {column for _, raw in head for column in _names(raw)}, path)
    prompts: list[Prompt] = []
    ids: set[str] = set()
    by_reason: Counter[str] = Counter()
    first: tuple[int, Fault] | None = None
    with quarantine.open("w", encoding="utf-8", errors="backslashreplace") as refused:
        for line, raw in chain(head, source):
            if limit is not None and len(prompts) >= limit:
                break
            try:
                prompt = to_prompt(to_row(raw, columns), name, max_chars, ties=ties)
                if prompt.id in ids:
                    raise Fault("duplicate", "id")
            except Fault as wrong:
                first = first or (line, wrong)
                by_reason[wrong.reason] += 1
                refused.write(_note(path, line, wrong, raw))
            else:
                ids.add(prompt.id)
                prompts.append(prompt)
    if not prompts:
        _refuse_all(path, first, name, quarantine)
    return Read(prompts, by_reason.total(), by_reason)


def pick(shape: str, columns: dict[str, str], found: set[str], path: Path) -> str:
    """The shape's name, checked or told from the columns found.

    A shape fits if all columns that it needs are there; one that fits gives way to another that takes those too.
    """
    known = {column for name in SHAPES for column in takes(name)[1]} | {*IDS, *KINDS}
    for want, has in columns.items():
        if want not in known:
            raise UserError(f"no shape has a column '{want}'", where="columns", mend=nearest(want, sorted(known)))
        if found and has not in found:
            raise UserError(f"no column '{has}' for {want}", where=str(path), mend=nearest(has, sorted(found)))
    if shape != "auto":
        if shape not in SHAPES:
            raise UserError(f"no shape is called '{shape}'", where=str(path), mend=nearest(shape, ["auto", *SHAPES]))
        return shape
    if not found:
        return "prompt"  # no row is an object: each is refused for its own reason
    here = (found - set(columns.values())) | set(columns)
    fits = [name for name in SHAPES if takes(name)[0] <= here]
    best = [a for a in fits if not any(takes(a)[0] <= takes(b)[1] and not takes(b)[0] <= takes(a)[1] for b in fits)]
    if len(best) != 1:
        what = f"fits the shapes {' and '.join(best)}" if best else "fits no known shape"
        forms = "; ".join(f"{name} ({', '.join(sorted(takes(name)[0]))})" for name in best or SHAPES)
        mend = f"name the shape, or map your columns to one of: {forms}"
        raise UserError(f"columns {', '.join(sorted(found)[:30])}: {what}", where=str(path), mend=mend)
    return best[0]


def to_row(raw: Any, columns: dict[str, str]) -> dict[str, Any]:
    """Decode a raw row and give its columns the expected names."""
    if isinstance(raw, Fault):
        raise raw
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError:
            raise Fault("not UTF-8") from None
        except (ValueError, RecursionError):
            raise Fault("not JSON") from None
    if not isinstance(raw, dict):
        raise Fault("not an object with columns")
    others = {name: value for name, value in raw.items() if name not in columns and name not in columns.values()}
    return others | {want: raw[has] for want, has in columns.items() if has in raw}


def to_prompt(row: dict[str, Any], shape: str, max_chars: int, **chosen: Any) -> Prompt:
    """Make a prompt of a row with the expected column names, or raise a Fault; a shape heeds the options it has."""
    needed, taken = takes(shape)
    for column in sorted(needed):
        if row.get(column) is None:
            raise Fault("missing", column)
    for column in REFUSED:
        if column not in taken and row.get(column):
            raise Fault("not supported", column)
    columns = {column: row[column] for column in taken if column in row}
    made = SHAPES[shape](**columns, **{name: chosen[name] for name in options(shape) if name in chosen})
    if not made["messages"]:
        raise Fault("no prompt before the answers", "prompt")
    if made["messages"][-1]["role"] not in ("user", "tool"):
        raise Fault("the prompt ends with a turn that is not the user's", "messages")
    texts = [("messages", turn["content"]) for turn in made["messages"]]
    for field, text in texts + [("given", one.get("text", "")) for one in made.get("given", ())]:
        if len(text) > max_chars:
            raise Fault(f"longer than {max_chars} characters", field)
    try:
        content = json.dumps(made, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError):
        raise Fault("holds what JSON cannot say", "checks") from None
    made["id"] = _id(row) or hashlib.sha256(content).hexdigest()[:16]
    made["kind"] = _kind(row)
    try:
        return Prompt.model_validate(made)
    except ValidationError as error:
        field, what = fault(error)
        raise Fault(what, field) from None


def _note(path: Path, line: int, wrong: Fault, raw: Any) -> str:
    note = {"file": str(path), "line": line, "field": wrong.field, "reason": wrong.reason, "row": _shown(raw)}
    return json.dumps(note, ensure_ascii=False) + "\n"


def _shown(raw: Any) -> str:
    """A refused row as it stood, cut short."""
    if isinstance(raw, bytes):
        return raw.decode(errors="replace").strip()[:SHOWN]
    try:
        return json.dumps(raw, ensure_ascii=False, default=str)[:SHOWN]
    except (TypeError, RecursionError):
        return type(raw).__name__


def _names(raw: Any) -> set[str]:
    try:
        return set(to_row(raw, {}))
    except Fault:
        return set()


def _id(row: dict[str, Any]) -> str:
    """The first id column that is set; an id may be a number."""
    name = next((name for name in IDS if row.get(name) is not None), "")
    value = row.get(name, "")
    return string(str(value) if isinstance(value, int) and not isinstance(value, bool) else value, name) if name else ""


def _kind(row: dict[str, Any]) -> str:
    return next((string(row[name], name) for name in KINDS if isinstance(row.get(name), str) and row[name].strip()), "")


def _refuse_all(path: Path, first: tuple[int, Fault] | None, shape: str, quarantine: Path) -> None:
    if first is None:
        raise UserError("holds no rows", where=str(path), mend="check the file")
    line, wrong = first
    mend = f"mend it, map its columns, or name another shape than '{shape}' (all refused rows: {quarantine})"
    raise UserError(
        f"no row can be used; the first has {wrong.field}: {wrong.reason}", where=f"{path}:{line}", mend=mend
    )
