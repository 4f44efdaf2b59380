"""Key phrases by RAKE: scores by hand, and which tokens they are made of."""

import math

import pytest

from stages.policies.text import keywords


def told(text: str) -> list[list[str]]:
    return [[text[first:end] for first, end in spans] for spans in keywords.phrases(text)]


def test_scores_by_hand() -> None:
    """Candidates: deep sea (twice), deep sea fish, fish, light.

    deep and sea: degree 2 + 2 + 3 = 7 over frequency 3; fish: 3 + 1 = 4 over 2; light 1. So deep sea fish scores
    7/3 + 7/3 + 2 = 6.67, deep sea 4.67, fish 2, light 1.
    """
    text = "Light in the deep sea: the deep sea fish. Fish of the Deep Sea"
    assert told(text) == [["deep sea fish"], ["deep sea", "Deep Sea"], ["Fish"], ["Light"]]


def test_what_stands_between_phrases() -> None:
    assert told("red, green; blue\nyellow - black (white)") == [
        ["red"],
        ["green"],
        ["blue"],
        ["yellow"],
        ["black"],
        ["white"],
    ]
    assert told("well-known X-ray") == [["well-known X-ray"]]
    assert told("it doesn't work, and it doesn\u2019t matter") == [["work"], ["matter"]]
    assert told("caf\u00e9 \u4e2d\u6587") == [["caf\u00e9 \u4e2d\u6587"]]


@pytest.mark.parametrize("text", ["", " ", "...", "It is what it is.", "I'm with you."])
def test_a_text_may_have_none(text: str) -> None:
    assert keywords.phrases(text) == []
    assert keywords.ranks(list(text)) == [math.inf] * len(text)


def test_ranks_of_tokens() -> None:
    """A space before a word is part of its token; a piece that reaches into two phrases takes the better rank."""
    inf = math.inf
    assert keywords.ranks([]) == []
    assert keywords.ranks(["", "so", "lar", " panels", ".", ""]) == [inf, 1, 1, 1, inf, inf]
    assert keywords.ranks(["cats", " and", " solar", " panels"]) == [1.0, inf, 0.5, 0.5]
    assert keywords.ranks(["cats and so", "lar panels"]) == [0.5, 0.5]
    assert keywords.ranks(["cats and ", "solar panels"]) == [1.0, 0.5]


def test_a_phrase_is_removed_wherever_it_stands() -> None:
    assert keywords.ranks(["Tea", " is", " tea", ", not", " green tea"])[0::2] == [1.0, 1.0, 0.5]
