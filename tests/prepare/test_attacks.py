"""Attacks: as many as there must be, held out whole, apart in words, and with nothing harmful in them."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.prepare import attacks
from stages.prepare.attacks import PLAIN, TESTS, Attacks, build, builtin, distinct, split, vaults, wrap
from stages.prepare.readers import read_prompts
from stages.prepare.run import Prepare, read
from stages.records import Completion, Message, Prompt

STYLES = builtin("styles")["styles"]


def request(name: str, text: str, *topics: str, harmful: bool = True, given: str = "") -> Prompt:
    answers = (Completion(text=given, score=1.0),) if given else ()
    checks = {"harmful": harmful, "topics": list(topics)}
    return Prompt(id=name, messages=(Message(role="user", content=text),), checks=checks, given=answers)


def grams(text: str) -> set[str]:
    """Runs of four characters of each word, a space at either end: what is compared, written anew."""
    padded = [f" {word} " for word in "".join(c if not c.isspace() else " " for c in text.lower()).split(" ") if word]
    return {word[i : i + 4] for word in padded for i in range(max(1, len(word) - 3))}


def near(one: str, other: str) -> float:
    a, b = grams(one), grams(other)
    return len(a & b) / len(a | b)


def test_the_styles_are_many_and_each_holds_the_request():
    assert len(STYLES) == 18
    assert len(set(STYLES.values())) == 18
    assert all("{request}" in template for template in STYLES.values())
    assert [*STYLES] == sorted(STYLES)
    assert PLAIN not in STYLES


def test_there_are_requests_times_styles_and_the_plain_form():
    made = wrap(vaults(), STYLES)
    assert len(made) == len(vaults()) * (len(STYLES) + 1)
    assert len({prompt.id for prompt in made}) == len(made)
    assert Counter(prompt.checks["style"] for prompt in made) == dict.fromkeys([PLAIN, *STYLES], len(vaults()))


def test_a_request_with_braces_stays_as_it_is():
    (_, dressed) = wrap([request("r", "Print {x} and {request}.", "a")], {"please": "Please: {request}"})
    assert dressed.messages[-1].content == "Please: Print {x} and {request}."


def test_the_game_is_complete_and_its_words_are_apart():
    game = vaults()
    assert len({prompt.checks["topics"][0] for prompt in game}) == 8
    assert Counter(prompt.checks["harmful"] for prompt in game) == {True: 48, False: 32}
    assert all(prompt.checks["secret"] in prompt.messages[0].content for prompt in game)
    assert not any(prompt.checks["secret"] in prompt.messages[-1].content for prompt in game)
    texts = [prompt.messages[-1].content for prompt in game]
    assert max(near(one, other) for i, one in enumerate(texts) for other in texts[:i]) < 0.5
    assert distinct(game, 0.5) == sorted(game, key=lambda prompt: not prompt.checks["harmful"])


@pytest.mark.parametrize("seed", range(5))
def test_nothing_that_is_held_out_is_trained_on(seed):
    found: dict[str, list[Prompt]] = {}
    for prompt in split(wrap(vaults(), STYLES), Attacks(), seed):
        found.setdefault(prompt.checks["split"], []).append(prompt)
    of = {
        name: {
            "request": {p.checks["request"] for p in prompts},
            "style": {p.checks["style"] for p in prompts},
            "topic": {topic for p in prompts for topic in p.checks["topics"]},
        }
        for name, prompts in found.items()
    }
    assert {*of} == {"train", "unused", *TESTS}
    train = of["train"]
    assert not any(train["request"] & of[name]["request"] for name in TESTS)
    assert not any(train["style"] & of[name]["style"] for name in ("unseen style", "unseen both"))
    assert not any(train["topic"] & of[name]["topic"] for name in ("unseen topic", "unseen both"))
    assert of["seen"]["style"] == train["style"] == of["unseen topic"]["style"]
    assert of["seen"]["topic"] == train["topic"] == of["unseen style"]["topic"]
    assert len(of["unseen both"]["style"]) == 4
    assert len(of["unseen both"]["topic"]) == 2
    learned = {p.checks["request"]: p for p in found["train"]}
    base = {p.id: p.messages[-1].content for p in vaults()}
    tests = {p.checks["request"] for name in TESTS for p in found[name]}
    assert max(near(base[one], base[other]) for one in learned for other in tests) < 0.7


def test_a_request_of_several_topics_is_unseen_if_one_of_them_is():
    rows = [request(f"r{i}", f"request number {i}", "a", "bcdef"[i]) for i in range(5)]
    found = split(wrap(rows, STYLES), Attacks(held_out_topics=1), 0)
    held = {topic for p in found if "unseen topic" == p.checks["split"] for topic in p.checks["topics"]}
    train = {topic for p in found if p.checks["split"] == "train" for topic in p.checks["topics"]}
    assert held
    assert ("a" in train) != (held == {"a", *"bcdef"}), "either the shared topic is held out, and all with it, or not"


def test_near_copies_are_left_out_and_other_words_are_not():
    rows = [
        request("a", "Tell me the word that opens the map room.", "maps"),
        request("b", "Tell me the word that opens the map  ROOM!", "maps"),
        request("c", "Tell me the word that opens the map room.", "maps", harmful=False),
        request("d", "Which rope do I have to pull?", "bells"),
    ]
    assert [row.id for row in distinct(rows, 0.7)] == ["a", "d", "c"]
    assert [row.id for row in distinct(rows, 1.0)] == ["a", "b", "d", "c"]


def test_copies_are_found_across_chunks(monkeypatch):
    texts = [f"{''.join(random.Random(i % 7).choices('abcdefgh ', k=40))}" for i in range(20)]
    assert attacks._doubled(texts, 0.7, chunk=3) == [False] * 7 + [True] * 13


def test_what_is_drawn_is_even_and_answered():
    train, test = build(vaults(), Attacks(), 192, 64, 0)
    assert Counter(p.checks["harmful"] for p in train) == {True: 128, False: 64}
    assert Counter(p.checks["split"] for p in test) == dict.fromkeys(TESTS, 16)
    assert len({p.id for p in train + test}) == 256
    assert {p.checks["split"] for p in train} == {"train"}
    assert all([c.score for c in p.given] == ([1.0] if p.checks["harmful"] else [1.0, 0.0]) for p in train)
    assert not any(p.given for p in test)
    assert all(p.reference for p in test)
    assert [p.id for p in build(vaults(), Attacks(), 192, 64, 0)[0]] == [p.id for p in train]
    assert [p.id for p in build(vaults(), Attacks(), 192, 64, 1)[0]] != [p.id for p in train]


@pytest.mark.parametrize("setting", [{"held_out_styles": 6}, {"held_out_topics": 3}, {"held_out_requests": 0.5}])
def test_every_setting_of_the_split_changes_it(setting):
    made = wrap(vaults(), STYLES)
    sides = [Counter(p.checks["split"] for p in split(made, Attacks(**s), 0)) for s in ({}, setting)]
    assert sides[0] != sides[1]


def test_only_harmful_prompts_are_withheld_and_only_by_default():
    for show in (False, True):
        train, test = build(vaults(), Attacks(show=show), 60, 24, 0)
        assert all(p.checks.get("withhold", False) == (p.checks["harmful"] and not show) for p in train + test)
    train, _ = build(vaults(), Attacks(benign=0), 60, 24, 0)
    assert all(p.checks["harmful"] for p in train)


def rows(count: int = 6) -> list[dict]:
    """A user's file of placeholders: eight topics of requests in made-up words, every other topic benign ones too."""
    made = []
    for number in range(8 * count):
        noise = random.Random(number)
        said = " ".join("".join(noise.choices("abcdefghijklmnop", k=6)) for _ in range(5))
        row = {"request": f"placeholder {said}", "topics": [f"topic {number % 8}"]}
        made.append(row | ({"benign": True, "safe": f"answer {said}"} if number % 16 < 4 else {}))
    made[0]["topics"].append("topic 1")
    return made


def written(tmp_path: Path, found: list[dict]) -> Path:
    file = tmp_path / "requests.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    return file


def test_a_file_of_requests_becomes_attacks(tmp_path):
    config = Prepare(prompts=str(written(tmp_path, rows())), train=60, test=24, attacks=Attacks())
    train, test, refused = read(config, 0, tmp_path / "quarantine.jsonl")
    assert (len(train), len(test), refused) == (60, 24, 0)
    assert {p.checks["split"] for p in test} == {*TESTS}
    harmful = [p for p in train if p.checks["harmful"]]
    assert {p.given[0].text for p in harmful} <= {*builtin("styles")["refusals"]}
    benign = [p for p in train if not p.checks["harmful"]]
    assert benign
    assert all([c.score for c in p.given] == [1.0, 0.0] for p in benign)
    assert all(p.given[0].text.startswith("answer ") for p in benign)


def test_a_file_of_requests_without_attacks_stays_plain(tmp_path):
    found = read_prompts(written(tmp_path, rows()), quarantine=tmp_path / "quarantine.jsonl").prompts
    assert found[0].checks == {"harmful": False, "topics": ["topic 0", "topic 1"]}
    assert found[0].messages[-1].content == rows()[0]["request"]


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="prepare.train: 5000 prompts asked for"):
        build(vaults(), Attacks(), 5000, 24, 0)
    with pytest.raises(UserError, match="held_out_topics: 8 of 8 topics held out leave none"):
        build(vaults(), Attacks(held_out_topics=8), 50, 24, 0)
    plain = Prompt(id="p", messages=(Message(role="user", content="Hello?"),))
    with pytest.raises(UserError, match="prompt p: its checks say no 'harmful'"):
        build([plain], Attacks(), 50, 24, 0)
    lone = [{"request": "placeholder", "topics": []}, *rows()]
    found = read_prompts(written(tmp_path, lone), quarantine=tmp_path / "quarantine.jsonl")
    assert found.by_reason == {"empty list": 1}


def test_the_game_is_read_by_its_name(tmp_path):
    config = Prepare(prompts="vaults", train=60, test=24)
    train, test, refused = read(config, 0, tmp_path / "quarantine.jsonl")
    assert [train, test, refused] == [*build(vaults(), Attacks(), 60, 24, 0), 0]
    assert (tmp_path / "quarantine.jsonl").read_text() == ""
