"""The nouns on disk survive a round trip, and whatever else a file holds is named by file, line and field."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.errors import UserError
from stages.records import Candidate, Completion, Message, Pair, Prompt, Ranking, Record, Single, read, write

ASK = (Message(role="user", content="Say hi."),)
RECORDS: list[Record] = [
    Prompt(id="p", messages=ASK, answer="4", checks={"max_words": 3}, given=(Completion(text="Hi", score=0.5),)),
    Candidate(id="p/0", prompt="p", text="", finished=False, tokens=(1, 2), logps=(-0.1, -2.0), scores={"length": 1.0}),
    Pair(id="p", messages=ASK, chosen=Completion(text="a"), rejected=Completion(text="b"), prob=0.7, margin=-1.5),
    Ranking(id="p", messages=ASK, completions=(Completion(text="a", score=1.0), Completion(image="iVBOR", score=0.5))),
    Single(id="p", messages=ASK, completion=Completion(text='a\n"é\u2028'), label=False),
]
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_round_trip(tmp_path, record):
    path = tmp_path / "rows.jsonl"
    write(path, [record, record])
    assert read(path, type(record)) == [record, record]
    assert len(path.read_text(encoding="utf-8").split("\n")) == 3


def test_defaults_are_left_out(tmp_path):
    write(tmp_path / "rows.jsonl", [Prompt(id="p", messages=ASK)])
    assert set(json.loads((tmp_path / "rows.jsonl").read_text())) == {"id", "messages"}


FAULTS = [  # record, content, what the error names
    (Completion, b'\n{"text": "a"}\n{"text": ""}', ":3: row: neither a text nor an image"),
    (Completion, b'{"text": " \\n"}', ":1: row: neither"),
    (Completion, b'{"text": "a", "score": NaN}', ":1: not JSON: NaN"),
    (Completion, b'{"text": "a", "score": 1e999}', ":1: score: "),
    (Completion, b'{"text": "a", "scores": 1}', ":1: scores: "),
    (Completion, b"{}", ":1: row: neither"),
    (Completion, b'{"text": "a"', ":1: not JSON"),
    (Completion, b"[" * 99_999, ":1: not JSON"),
    (Completion, b"9" * 5_000, ":1: not JSON"),
    (Completion, b'{"text": "\\ud800"}', ":1: text: "),
    (Completion, b"[]", ":1: row: "),
    (Completion, b'{"text": "caf\xe9"}', "not UTF-8"),
    (Message, b'{"role": "robot", "content": "a"}', ":1: role: "),
    (Prompt, b'{"id": "p", "messages": []}', ":1: messages: "),
    (Prompt, b'{"id": "p", "messages": [{"role": "user", "content": ""}]}', ":1: messages.0.content: "),
    (Pair, b'{"id": "p", "messages": [], "prob": 1.5}', ":1: messages"),
]


@pytest.mark.parametrize(("record", "content", "named"), FAULTS)
def test_wrong_row_is_named_in_one_line(tmp_path, record, content, named):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="rows.jsonl") as error:
        read(path, record)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        read(tmp_path / "none.jsonl", Prompt)


def lines_of(path: Path, kind: type[Record]) -> int | None:
    try:
        return len(read(path, kind))
    except UserError:
        return None


@quick
@given(content=st.binary(max_size=60) | st.sampled_from([b"9", b"null", b"\xff", b"\n{"]))
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert lines_of(path, Completion) in (None, 0)


@quick
@given(cut=st.integers(1, 400), at=st.integers(0, 400), junk=st.binary(max_size=5))
def test_damaged_file_is_read_or_refused(tmp_path, cut, at, junk):
    path = tmp_path / "rows.jsonl"
    write(path, [RECORDS[2]] * 3)
    whole = path.read_bytes()
    path.write_bytes((whole[:at] + junk + whole[at + len(junk) :])[:-cut])
    assert lines_of(path, Pair) in (None, 0, 1, 2, 3)
