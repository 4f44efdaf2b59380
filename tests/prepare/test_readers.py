"""Every published shape becomes the Prompt that the table in readers.py says; whatever else comes is counted."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stages.errors import UserError
from stages.evaluate.geneval import metadata
from stages.images import encode
from stages.prepare.readers import Read, pick, read_prompts
from stages.prepare.shapes import SHAPES, takes
from stages.records import Completion, Prompt

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ASK = [{"role": "user", "content": "Say hi."}]
HI, NO = [{"role": "assistant", "content": "Hi!"}], [{"role": "assistant", "content": "No."}]
HUMAN = "\n\nHuman: Say hi.\n\nAssistant:"
RATED = {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "4"}, "truthfulness": {"Rating": "N/A"}}
STEPS = (Completion(text="H\ni", score=0.5),)
PAIR = (Completion(text="Hi!", score=1), Completion(text="No.", score=0))
BLACK, WHITE = (encode(torch.full((1, 2, 2), value)) for value in (-1.0, 1.0))

CASES = [  # shape, row, given
    ("prompt", {"prompt": "Say hi."}, ()),
    ("prompt", {"prompt": ASK}, ()),
    ("prompt", {"prompt": HUMAN}, ()),
    ("prompt", {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Say hi."}]}]}, ()),
    ("demonstration", {"prompt": "Say hi.", "completion": "Hi!"}, (Completion(text="Hi!"),)),
    ("demonstration", {"prompt": ASK, "completion": HI}, (Completion(text="Hi!"),)),
    ("unpaired", {"prompt": "Say hi.", "completion": "Hi!", "label": True}, PAIR[:1]),
    ("unpaired", {"prompt": ASK, "completion": NO, "label": False}, PAIR[1:]),
    (
        "stepwise",
        {"prompt": "Say hi.", "completions": ["H", "i"], "labels": [True, False]},
        (Completion(text="H\ni", score=0.5),),
    ),
    ("preference", {"prompt": "Say hi.", "chosen": "Hi!", "rejected": "No."}, PAIR),
    ("preference", {"prompt": ASK, "chosen": HI, "rejected": NO}, PAIR),
    ("preference", {"chosen": ASK + HI, "rejected": ASK + NO}, PAIR),
    ("preference", {"chosen": "Say hi. Hi!", "rejected": "Say hi. No."}, PAIR),
    ("preference", {"chosen": HUMAN + " Hi!", "rejected": HUMAN + " No."}, PAIR),
    ("messages", {"messages": ASK}, ()),
    ("messages", {"messages": ASK + HI, "prompt": "Say hi."}, (Completion(text="Hi!"),)),
    ("text", {"text": HUMAN + " Hi!"}, (Completion(text="Hi!"),)),
    ("text", {"text": "### Human: Say hi.### Assistant: Hi!"}, (Completion(text="Hi!"),)),
    (
        "ultrafeedback",
        {
            "source": "x",
            "instruction": "Say hi.",
            "completions": [
                {"model": "a", "response": "Hi!", "annotations": RATED, "overall_score": 9},
                {"model": "b", "response": "No.", "annotations": {}, "overall_score": 2},
            ],
        },
        (Completion(text="Hi!", score=4.5), Completion(text="No.", score=2)),
    ),
    (
        "alpaca",
        {"instruction": "Say hi.", "output": "Hi!", "generator": "a", "dataset": "b"},
        (Completion(text="Hi!"),),
    ),
    (
        "judged",
        {"instruction": "Say hi.", "output_1": "Hi!", "output_2": "No.", "preference": 1.25},
        (Completion(text="Hi!", score=0.75), Completion(text="No.", score=0.25)),
    ),
    ("mt_bench", {"question_id": 81, "category": "writing", "turns": ["Say hi.", "Again."]}, ()),
    ("gsm8k", {"question": "Say hi.", "answer": "1000 + 1 = <<1000+1=1001>>1001\n#### 1,001"}, ()),
    ("parti", {"Prompt": "Say hi.", "Category": "Abstract", "Challenge": "Basic", "Note": None}, ()),
    ("geneval", {"tag": "counting", "include": [{"class": "cow", "count": 2}], "prompt": "Say hi."}, ()),
    ("request", {"request": "Say hi.", "topics": ["greetings", "manners"]}, ()),
    ("request", {"request": "Say hi.", "topics": ["greetings"], "safe": "Hi!", "benign": True}, PAIR[:1]),
    ("captioned", {"caption": "Say hi.", "image": BLACK}, (Completion(image=BLACK),)),
    (
        "image_preference",
        {"prompt": "Say hi.", "chosen_image": WHITE, "rejected_image": BLACK},
        (Completion(image=WHITE, score=1), Completion(image=BLACK, score=0)),
    ),
    (
        "pick_a_pic",
        {"caption": "Say hi.", "jpg_0": BLACK, "jpg_1": WHITE, "label_0": 0, "label_1": 1, "has_label": True},
        (Completion(image=BLACK, score=0), Completion(image=WHITE, score=1)),
    ),
]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, **settings) -> Read:
    return read_prompts(path, quarantine=path.with_name("refused.jsonl"), **settings)


def refusals(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.with_name("refused.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("shape", "row", "completions"), CASES)
def test_shape(tmp_path, shape, row, completions):
    path = write(tmp_path / "data.jsonl", [row])
    assert pick("auto", {}, set(row), path) == shape
    (prompt,) = load(path).prompts
    assert [(turn.role, turn.content) for turn in prompt.messages] == [("user", "Say hi.")]
    assert prompt.given == completions


def test_every_shape_has_a_case():
    assert {shape for shape, *_ in CASES} == set(SHAPES)


def test_ultrafeedback_binarized(tmp_path):
    row = {"prompt": "Say hi.", "prompt_id": "p1", "chosen": ASK + HI, "rejected": ASK + NO, "messages": ASK + HI}
    (prompt,) = load(write(tmp_path / "data.jsonl", [row | {"score_chosen": 8.5, "score_rejected": 4}])).prompts
    assert prompt.id == "p1"
    assert [turn.content for turn in prompt.messages] == ["Say hi."]
    assert prompt.given == (Completion(text="Hi!", score=8.5), Completion(text="No.", score=4))


def test_reward_bench_keeps_its_subset_and_its_number(tmp_path):
    row = {"id": 30, "prompt": "Say hi.", "chosen": "Hi!", "rejected": "No.", "subset": "alpacaeval-easy"}
    (prompt,) = load(write(tmp_path / "data.jsonl", [row])).prompts
    assert (prompt.id, prompt.kind) == ("30", "alpacaeval-easy")


def test_longer_dialogues_share_their_beginning_as_the_prompt(tmp_path):
    more = ASK + HI + [{"role": "user", "content": "Again."}]
    rows = [
        {"chosen": more + HI, "rejected": more + NO},
        {"prompt": "Say hi.", "chosen": more + HI, "rejected": more + NO},
    ]
    for row in rows:
        (prompt,) = load(write(tmp_path / "data.jsonl", [row])).prompts
        assert [turn.content for turn in prompt.messages] == ["Say hi.", "Hi!", "Again."]
        assert prompt.given == PAIR


def test_plain_pairs_are_cut_between_words(tmp_path):
    (prompt,) = load(
        write(tmp_path / "data.jsonl", [{"chosen": "Grass is green", "rejected": "Grass is grey"}])
    ).prompts
    assert prompt.messages[0].content == "Grass is"
    assert [one.text for one in prompt.given] == ["green", "grey"]


def test_what_the_shapes_keep_besides(tmp_path):
    rows = {shape: row for shape, row, _ in CASES}
    names = ("gsm8k", "mt_bench", "geneval", "parti")
    read = [load(write(tmp_path / "data.jsonl", [rows[name]])).prompts[0] for name in names]
    gsm8k, mt_bench, geneval, parti = read
    assert (gsm8k.answer, gsm8k.reference) == ("1001", "1000 + 1 = 1001")
    assert (mt_bench.id, mt_bench.kind) == ("81", "writing")
    assert (geneval.kind, parti.kind) == ("counting", "Abstract")
    assert geneval.checks == {"include": [{"class": "cow", "count": 2}]}


def test_genevals_objects_are_the_same_out_of_a_table_and_wrong_ones_are_refused(tmp_path):
    cow, dog = {"class": "cow", "count": 1, "color": "red"}, {"class": "dog", "count": 1}
    rows = [
        {"tag": "two_object", "include": [cow, dog], "exclude": [{"class": "cow", "count": 2}], "prompt": "Say hi."}
    ]
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)  # fills in the colour of the dog
    assert load(path).prompts[0].checks == {name: rows[0][name] for name in ("include", "exclude")}
    wrong = [{**rows[0], "include": value} for value in ("cow", [], ["cow"], [{"count": 1}])]
    assert len(load(write(tmp_path / "data.jsonl", rows + wrong)).prompts) == 1
    assert [(one["field"], one["reason"]) for one in refusals(tmp_path / "data.jsonl")] == [
        ("include", "wrong type"),
        ("include", "empty list"),
        ("include.0", "not an object with a class"),
        ("include.0", "not an object with a class"),
    ]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet", "csv", "tsv"])
def test_every_kind_of_file_reads_the_same(tmp_path, ending):
    rows = [{"prompt": f"Say {n}.", "completion": f"Né {n}, 'yes'", "label": n % 2 == 0} for n in range(3)]
    path = tmp_path / f"data.{ending}"
    text = json.dumps(rows) if "json." in ending + "." else "\n".join(map(json.dumps, rows))
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as out:
            table = csv.DictWriter(out, list(rows[0]), delimiter="," if ending == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_bytes(gzip.compress(text.encode(), mtime=0) if ending.endswith("gz") else text.encode())
    expected = load(write(tmp_path / "plain.jsonl", rows)).prompts
    assert load(path).prompts == expected
    assert [prompt.given[0].score for prompt in expected] == [1, 0, 1]


FAULTS = [  # line, field, part of the reason
    ('{"prompt": "a", "chosen": "b"', "row", "not JSON"),
    ("[1]", "row", "not an object"),
    ('{"prompt": "a", "chosen": "b"}', "rejected", "missing"),
    ('{"prompt": "a", "chosen": 1, "rejected": "c"}', "chosen", "wrong type"),
    ('{"prompt": " ", "chosen": "b", "rejected": "c"}', "prompt", "empty text"),
    ('{"prompt": "a", "chosen": "b", "rejected": "b"}', "rejected", "the same"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c", "id": "ok"}', "id", "duplicate"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c", "id": true}', "id", "wrong type"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": NaN}', "score_chosen", "finite"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c", "score_chosen": 1}', "score_rejected", "missing"),
    ('{"prompt": "a", "chosen": "%s", "rejected": "c"}' % ("b" * 101), "given", "longer than 100"),
    ('{"prompt": "a", "chosen": [{"role": "robot", "content": "b"}], "rejected": "c"}', "chosen.0", "unknown role"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c", "images": [1]}', "images", "not supported"),
    ('{"prompt": "a", "chosen": "\\ud800", "rejected": "c"}', "chosen", "not UTF-8"),
    (
        '{"prompt": [{"role": "system", "content": "a"}], "chosen": "b", "rejected": "c"}',
        "messages",
        "ends with a turn",
    ),
]


@pytest.mark.parametrize(("line", "field", "reason"), FAULTS)
def test_faulty_row_is_refused_and_counted(tmp_path, line, field, reason):
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "x", "chosen": "y", "rejected": "z", "id": "ok"}\n\n' + line + "\n")
    read = load(path, max_chars=100)
    (refusal,) = refusals(path)
    assert (refusal["file"], refusal["line"], refusal["field"]) == (str(path), 3, field)
    assert reason in refusal["reason"]
    assert refusal["row"] == line
    assert (len(read.prompts), read.refused, read.by_reason) == (1, 1, Counter([refusal["reason"]]))


def test_bad_bytes_spoil_their_own_row_only(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n{"prompt": "ok"}\n')
    assert load(path).by_reason == Counter({"not UTF-8": 1})
    path = tmp_path / "data.csv"
    path.write_bytes(b"prompt,kind\ncaf\xe9,a\nok,b\nok,b,c\n")
    assert load(path).by_reason == Counter({"not UTF-8": 1, "3 cells under 2 columns": 1})


def test_exact_duplicates_are_refused_but_pairs_on_one_prompt_are_kept(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    read = load(write(tmp_path / "data.jsonl", [row, row, row | {"rejected": "d"}]))
    assert (len(read.prompts), read.by_reason) == (2, Counter({"duplicate": 1}))


def test_columns_are_renamed(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"question": "a", "good": "b", "bad": "c"}])
    (prompt,) = load(path, columns={"prompt": "question", "chosen": "good", "rejected": "bad"}).prompts
    assert [one.text for one in prompt.given] == ["b", "c"]
    with pytest.raises(UserError, match="no column 'god' for chosen; did you mean 'good'"):
        load(path, columns={"chosen": "god"})
    with pytest.raises(UserError, match="no shape has a column 'choosen'"):
        load(path, columns={"choosen": "good"})


def test_wishes_of_the_user_are_kept(tmp_path):
    wishes = {"answer": 4, "reference": "Four.", "checks": {"max_words": 3}}
    (prompt,) = load(write(tmp_path / "data.jsonl", [{"prompt": "2 + 2?"} | wishes])).prompts
    assert (prompt.answer, prompt.reference, prompt.checks) == ("4", "Four.", {"max_words": 3})


def test_limit_stops_early(tmp_path):
    path = write(tmp_path / "data.jsonl", [{"prompt": str(n)} for n in range(300)])
    assert [prompt.messages[0].content for prompt in load(path, limit=2).prompts] == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.txt", b"hello", "no reader for this ending"),
        ("data.csv.gz", b"hello", "no reader for this ending"),
        ("data.jsonl", b"\n \n", "holds no rows"),
        ("data.jsonl", b'\n{"prompt": ""}\n', "data.jsonl:2: no row can be used; the first has prompt: empty text"),
        ("data.jsonl", b'{"prompt', "data.jsonl:1: no row can be used; the first has row: not JSON"),
        ("data.jsonl", b'{"a": 1, "b": 2}', "columns a, b: fits no known shape; .*unpaired"),
        ("data.jsonl", b'{"prompt": "a", "question": "b", "answer": "#### 1"}', "fits the shapes prompt and gsm8k"),
        ("data.json", b'{"prompt": "a"}', "one value, not a list"),
        ("data.json", b"[" * 100_000, "cannot be read as .json"),
        ("data.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:-9], "cannot be read as .jsonl"),
        ("data.parquet", b"PAR1", "cannot be read as .parquet"),
    ],
)
def test_unusable_file_is_one_line_that_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_missing_file_and_unknown_shape_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.jsonl")
    path = write(tmp_path / "data.jsonl", [{"prompt": "a"}])
    with pytest.raises(UserError, match="did you mean 'preference'"):
        load(path, shape="preferences")


# ---- whatever comes: a prompt, a counted refusal or a UserError, never another exception

words = st.sampled_from(
    ["", " ", "a", "Say hi.", HUMAN, HUMAN + " Hi!", "#### 3", "1.5", "true", "\ud800", "\x85"]
) | st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
turn = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", 3]), "content": scalars})
named = st.sampled_from(["role", "content", "response", "annotations", "overall_score", "Rating", "type", "text", "x"])
values = st.recursive(
    scalars | turn, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(named, inner, max_size=3)
)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_accounts(path: Path, rows: int | None, **settings) -> None:
    """Each row that is not blank is accounted for, and every prompt survives the disk."""
    try:
        read = load(path, **settings)
    except UserError:
        return
    assert read.refused == read.by_reason.total() == len(refusals(path))
    assert rows is None or len(read.prompts) + read.refused == rows
    assert len({prompt.id for prompt in read.prompts}) == len(read.prompts) > 0
    assert all(Prompt.model_validate_json(prompt.model_dump_json()) == prompt for prompt in read.prompts)


@pytest.mark.parametrize("shape", sorted(SHAPES))
@quick
@given(data=st.data())
def test_any_json_value_in_any_column(tmp_path, shape, data):
    columns = sorted({*takes(shape)[1], "id", "kind", "tools"})
    good = next(row for name, row, _ in CASES if name == shape)
    row = st.fixed_dictionaries({}, optional={column: values for column in columns}).map(lambda some: good | some)
    rows = data.draw(st.lists(row | values, min_size=1, max_size=4))
    check_accounts(write(tmp_path / "data.jsonl", [good, *rows]), len(rows) + 1, shape=shape)
    check_accounts(write(tmp_path / "data.jsonl", rows), len(rows))


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.jsonl.gz", "data.parquet", "data.csv", "data.tsv"])
@quick
@given(content=st.binary(max_size=80))
@example(content=b"PAR1" + bytes(8) + b"PAR1")
@example(content=b'prompt\n"open')
def test_any_bytes(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    check_accounts(path, None)


@quick
@given(cut=st.integers(0, 400), junk=st.binary(max_size=6), at=st.integers(0, 400))
@example(cut=0, junk=b"\xc2\x80", at=60)  # of a column's name: two dialogues of an answer alone, without a prompt
def test_truncated_and_overwritten_lines(tmp_path, cut, junk, at):
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for _, row, _ in CASES[9:14]).encode()
    content = (whole[:at] + junk + whole[at + len(junk) :])[: len(whole) - cut]
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    check_accounts(path, sum(bool(line.strip()) for line in content.split(b"\n")), shape="preference")


# ---- published files

PARTED = {"differs from chosen before the last turn": 5}


@pytest.mark.parametrize(
    ("name", "shape", "rows", "refused"),
    [
        (
            "hh-rlhf-harmless-test.jsonl.gz",
            "preference",
            2312,
            {**PARTED, "empty text": 4},
        ),
        ("gsm8k-test.jsonl", "gsm8k", 1319, {}),
        ("geneval-prompts.jsonl", "geneval", 553, {}),
        ("parti-prompts.tsv", "parti", 1632, {}),
        ("alpaca-eval/gemma-7b-it.jsonl.gz", "judged", 805, {}),
        ("alpaca-eval/vicuna-7b-v1.3.jsonl.gz", "judged", 805, {}),
    ],
)
def test_published_file(tmp_path, name, shape, rows, refused):
    if not (DATA / name).exists():
        pytest.skip(f"shared/data/{name} is not beside the repository")
    read, named = (read_prompts(DATA / name, shape=s, quarantine=tmp_path / "refused.jsonl") for s in ("auto", shape))
    assert read == named
    assert read.by_reason == Counter(refused)
    assert len(read.prompts) == rows - sum(refused.values())
    if shape == "geneval":  # what its scripts read can be written again
        lines = (DATA / name).read_text().splitlines()
        assert [metadata(prompt) for prompt in read.prompts] == [json.loads(line) for line in lines]
    if shape == "gsm8k":
        assert all(prompt.answer and prompt.answer.removeprefix("-").isdigit() for prompt in read.prompts)
    if shape == "judged":  # the published win rate of this model
        with (DATA / "alpaca-eval" / "leaderboard.csv").open() as table:
            published = {row[""]: float(row["win_rate"]) for row in csv.DictReader(table)}
        won = [prompt.given[1].score for prompt in read.prompts]
        assert 100 * sum(won) / len(won) == pytest.approx(
            published[Path(name).name.removesuffix(".jsonl.gz")], abs=1e-4
        )
