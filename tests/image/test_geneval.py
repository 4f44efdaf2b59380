"""GenEval's layout: what its scripts read, both ways, and its numbers on scenes."""

import json

import pytest
from PIL import Image

from stages import images
from stages.errors import UserError
from stages.evaluate import geneval
from stages.prepare.worlds import world
from stages.records import Candidate
from stages.scenes.draw import render
from stages.scenes.look import detect, relations
from stages.scenes.words import KINDS, scene

PROMPTS = world("scenes", 1, 18, 0)[1]


def candidates(prompts, k=3, shown=None):
    """K pictures for each prompt, of the scene it asks for or of the one that `shown` gives for it."""
    return [
        Candidate(
            id=f"{prompt.id}/{n}",
            prompt=prompt.id,
            image=images.encode(render(scene((shown or {}).get((prompt.id, n), prompt.checks)), n)),
        )
        for prompt in prompts
        for n in range(k)
    ]


def test_metadata_of_a_position_names_an_earlier_entry():
    prompt = next(prompt for prompt in PROMPTS if prompt.kind == "position")
    first, second = prompt.checks["objects"]
    line = geneval.metadata(prompt)
    assert line["tag"] == "position"
    assert line["prompt"] == prompt.messages[-1].content
    assert line["include"] == [
        {"class": second["shape"], "count": 1, "color": second["color"]},
        {
            "class": first["shape"],
            "count": 1,
            "color": first["color"],
            "position": [prompt.checks["relation"]["where"], 0],
        },
    ]


def test_metadata_and_checks_are_each_others_inverse():
    train, test = world("scenes", 600, 300, 0)
    for prompt in train + test:
        line = json.loads(json.dumps(geneval.metadata(prompt)))
        assert geneval.checks(line) == prompt.checks


def by_genevals_rule(line: dict, pixels) -> bool:
    """The rule of the paper's script: counts are lower bounds, a position is held against an earlier entry."""
    found = detect(pixels)
    groups: list[list] = []
    for entry in line["include"]:
        group = [one for one in found if one.shape == entry["class"]][: entry["count"]]
        colored = [one for one in group if entry.get("color") in (None, one.color)]
        if len(colored) < entry["count"]:
            return False
        where, target = entry.get("position", (None, None))
        if where and not all(where in relations(a.box, b.box) for a in group for b in groups[target]):
            return False
        groups.append(group)
    return not any(sum(o.shape == entry["class"] for o in found) >= entry["count"] for entry in line["exclude"])


def test_genevals_own_rule_agrees_on_right_and_wrong_pictures():
    prompts = [p for p in world("scenes", 120, 1, 0)[0] if "size" not in p.checks["objects"][0]]
    verdicts = []
    for n, prompt in enumerate(prompts):
        line = geneval.metadata(prompt)
        for shown in (prompt, prompts[n - 1], prompts[n - 6]):
            pixels = images.decode(shown.given[0].image)
            verdicts.append(by_genevals_rule(line, pixels))
            assert geneval.verify(pixels, geneval.checks(line))["correct"] == verdicts[-1]
    assert len(prompts) < sum(verdicts) + 5 < len(verdicts)


def test_layout_is_genevals(tmp_path):
    made = candidates(PROMPTS, k=5)
    geneval.write(tmp_path, PROMPTS, made)
    assert sorted(home.name for home in tmp_path.iterdir()) == [f"{n:05d}" for n in range(len(PROMPTS))]
    home = tmp_path / "00000"
    assert sorted(f.name for f in home.rglob("*") if f.is_file()) == [
        *[f"{n:04d}.png" for n in range(5)],
        "grid.png",
        "metadata.jsonl",
    ]
    assert json.loads((home / "metadata.jsonl").read_text()) == geneval.metadata(PROMPTS[0])
    with Image.open(home / "samples" / "0003.png") as picture:
        assert (picture.format, picture.size, picture.mode) == ("PNG", (32, 32), "RGB")
        assert images.encode_picture(picture) == made[3].image
    with Image.open(home / "grid.png") as sheet:
        assert sheet.size == (4 * 34 + 2, 2 * 34 + 2)  # two rows of at most four, 2 pixels apart


def test_real_scenes_score_one_in_every_task(tmp_path):
    geneval.write(tmp_path, PROMPTS, candidates(PROMPTS))
    rows = geneval.score(tmp_path)
    geneval.save(rows, tmp_path / "results.jsonl")
    read = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert read == rows
    assert [*rows[0]] == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert len(rows) == 3 * len(PROMPTS)
    assert json.loads(rows[0]["metadata"]) == geneval.metadata(PROMPTS[0])
    assert sum(map(len, json.loads(rows[0]["details"]).values())) == sum(
        entry["count"] for entry in geneval.metadata(PROMPTS[0])["include"]
    )
    assert geneval.summary(rows) == dict.fromkeys([*KINDS, "overall", "images", "prompts"], 1.0)


def test_wrong_pictures_lower_their_task_alone(tmp_path):
    # 18 prompts are 3 a task, with 2 pictures each. Of the colours' 6 pictures, both of one prompt and one of another
    # are wrong: 3/6 there, overall (5 + 1/2) / 6, 33 of 36 pictures. Two prompts share a caption, and a line of
    # metadata is one prompt: 16 of 17.
    colors = [prompt for prompt in PROMPTS if prompt.kind == "colors"]
    wrong = {"objects": [{"shape": "cross", "color": "purple", "count": 2}]}
    shown = dict.fromkeys([(colors[0].id, 0), (colors[0].id, 1), (colors[1].id, 1)], wrong)
    geneval.write(tmp_path, PROMPTS, candidates(PROMPTS, k=2, shown=shown))
    rows = geneval.score(tmp_path)
    found = geneval.summary(rows)
    assert found["colors"] == 0.5
    assert found["overall"] == pytest.approx(5.5 / 6)
    assert found["images"] == pytest.approx(33 / 36)
    assert found["prompts"] == pytest.approx(16 / 17)
    faults = [row for row in rows if not row["correct"]]
    assert {row["tag"] for row in faults} == {"colors"}
    assert all(row["reason"].startswith("expected objects=1, found 2") for row in faults)


def test_faults_are_named(tmp_path):
    with pytest.raises(UserError, match="no numbered folders"):
        geneval.score(tmp_path)
    with pytest.raises(UserError, match=f"prompt {PROMPTS[0].id}: no picture"):
        geneval.write(tmp_path, PROMPTS, [])
    (tmp_path / "00000").mkdir()
    with pytest.raises(UserError, match=r"00000/metadata.jsonl: not GenEval's metadata: FileNotFoundError"):
        geneval.score(tmp_path)
    line = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a red dog"}
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match=r"metadata.jsonl: objects.0.shape: Input should be 'circle'"):
        geneval.score(tmp_path)


def test_wrong_entries_are_named():
    cross, square = {"class": "cross", "count": 1}, {"class": "square", "count": 1}
    for include in (None, [7], [{"count": 1}], [cross | {"position": ["above", 4]}], [cross | {"position": 4}]):
        with pytest.raises(UserError, match="^metadata.jsonl: not GenEval's metadata"):
            geneval.checks({"include": include})
    with pytest.raises(UserError, match="^metadata.jsonl: 2 positions; give one"):
        geneval.checks({"include": [cross | {"position": ["above", 1]}, square | {"position": ["below", 0]}]})
    with pytest.raises(UserError, match="the relation is not between two of the objects"):
        geneval.checks({"include": [cross | {"position": ["above", 0]}, square]})
