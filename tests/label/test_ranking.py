import random
from dataclasses import replace

import pytest

from stages import declared
from stages.errors import UserError
from stages.label.pairings.ranking import ranking
from stages.panel import Panel
from stages.parts import FAMILIES
from stages.records import Candidate, Ranking
from tests.label.world import candidate, prompt

PANEL = declared.of(Panel(rewards={name: {} for name in ("relevance", "sentiment", "length", "repetition")}))


def scored(columns: dict[str, list[float]], score: list[float] | None = None) -> list[Candidate]:
    """Answers a, b, c, ... with these scores by reward, and a mixed score."""
    k = len(next(iter(columns.values()))) if columns else len(score or [])
    mixed = score or [0.5] * k
    return [
        candidate("abcdefgh"[i], i, score=mixed[i], scores={name: column[i] for name, column in columns.items()})
        for i in range(k)
    ]


def ranked(candidates: list[Candidate], **settings) -> dict[str, float]:
    """Answers with their phi, in the order of the ranking."""
    made = ranking(prompt(), candidates, random.Random(0), temperature=0.1, rewards=PANEL, **settings)
    assert len(made) <= 1
    return {one.text: one.score for each in made for one in each.completions}


def test_votes_by_hand() -> None:
    """Relevance says a > b > c, sentiment b > c > a. Won: a 2 + 0, b 1 + 2, c 0 + 1, of 2 * 2 each."""
    found = ranked(scored({"relevance": [0.9, 0.5, 0.1], "sentiment": [-0.5, 0.8, 0.0]}))
    assert list(found.items()) == [("b", 0.75), ("a", 0.5), ("c", 0.25)]


@pytest.mark.parametrize("k", [2, 3, 8])
def test_without_ties_phi_sums_to_half_the_members(k: int) -> None:
    rng = random.Random(k)
    columns = {name: rng.sample(range(100), k) for name in ("relevance", "length", "sentiment")}
    found = ranked(scored({name: [x / 100 for x in column] for name, column in columns.items()}))
    assert sum(found.values()) == pytest.approx(k / 2)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_only_the_order_of_a_reward_counts() -> None:
    one, two = [0.1, 0.9, 0.5], [0.3, 0.2, 0.1]
    assert ranked(scored({"length": one, "relevance": two})) == ranked(
        scored({"length": [x**3 for x in one], "relevance": two})
    )


def test_a_tie_is_won_by_nobody() -> None:
    """Also one in the last digit: a sum of tenths."""
    assert ranked(scored({"length": [0.1 + 0.2, 0.3, 0.0]})) == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_the_mixed_score_may_vote_alone() -> None:
    rows = scored({"length": [0.9, 0.5, 0.1]}, score=[0.2, 0.3, 0.8])
    assert list(ranked(rows)) == ["a", "b", "c"]
    assert ranked(rows, by="score") == {"c": 1.0, "b": 0.5, "a": 0.0}


def test_named_voters_vote_alone() -> None:
    rows = scored({"length": [0.9, 0.1], "relevance": [0.2, 0.8]})
    assert ranked(rows) == {}, "one vote each"
    assert ranked(rows, voters=["relevance"]) == {"b": 1.0, "a": 0.0}


def test_a_voter_that_is_no_reward_is_named() -> None:
    with pytest.raises(
        UserError, match="pairing.voters: no reward on the panel has the key 'relevanse'; did you mean 'relevance'"
    ):
        ranked(scored({"length": [0.9, 0.1]}), voters=["relevanse"])


def test_a_reward_that_left_an_answer_out_has_no_vote() -> None:
    rows = scored({"length": [0.9, 0.1], "relevance": [0.2, 0.8]})
    rows[0] = rows[0].model_copy(update={"scores": {"length": 0.9}})
    assert ranked(rows) == {"a": 1.0, "b": 0.0}


def test_where_no_reward_scored_them_the_mixed_score_votes() -> None:
    """A panel of judges leaves a mixed score and nothing else."""
    assert ranked(scored({}, score=[0.2, 0.7])) == {"b": 1.0, "a": 0.0}


def test_blank_unscored_and_repeated_answers_are_left_out() -> None:
    rows = scored({}, score=[0.2, 0.7, 0.9, 0.4, 0.8])
    rows[1] = rows[1].model_copy(update={"text": "a"})
    rows[2] = rows[2].model_copy(update={"text": " "})
    rows[3] = rows[3].model_copy(update={"score": None})
    assert ranked(rows) == {"e": 1.0, "a": 0.0}


@pytest.mark.parametrize("score", [[0.5, 0.5, 0.5], [0.5], []])
def test_nothing_to_rank(score: list[float]) -> None:
    assert ranked(scored({}, score=score)) == {}


def test_images_are_told_apart_by_their_pixels() -> None:
    """They have no text; their trajectories stay with them."""
    rows = [
        Candidate(id=f"p/{i}", prompt="p", image=image, latents="AAAA", score=s, scores={"length": s})
        for i, (image, s) in enumerate([("eA==", 0.1), ("eQ==", 0.6), ("eA==", 0.1)])
    ]
    (made,) = ranking(prompt(), rows, random.Random(0), temperature=0.1, rewards=PANEL)
    assert isinstance(made, Ranking)
    assert made.id == "p"
    assert [(one.image, one.latents, one.score) for one in made.completions] == [
        ("eQ==", "AAAA", 1.0),
        ("eA==", "AAAA", 0.0),
    ]


def test_a_reward_votes_under_the_key_that_the_panel_gave_it(tmp_path) -> None:
    """One of which less is better is called `echo`; what the panel put down reads back as it was."""
    panel = Panel(rewards={"echo": {"name": "repetition", "ngram": 2}})
    specs = declared.of(panel)
    declared.write(tmp_path / "rewards.json", specs)
    told = declared.read(tmp_path / "rewards.json")
    assert told == {"echo": replace(specs["echo"], paper="", families=FAMILIES)}
    lower = {"echo": replace(told["echo"], higher=False)}
    for rewards, best in ((told, "a"), (lower, "b")):
        (made,) = ranking(
            prompt(), scored({"echo": [0.9, 0.1, 0.5]}), random.Random(0), temperature=0.1, rewards=rewards
        )
        assert made.completions[0].text == best
