"""The text of single tokens, as it reads in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LETTER = 4  # most tokens that one letter may take, a byte each


def pieces(tokenizer: Any, tokens: Sequence[int], *, special: bool) -> list[str]:
    """The text that each token adds; a letter of several tokens stands with the last of them.

    Args:
        tokenizer: of the model.
        tokens: of a completion.
        special: spell out what ends a turn and the like; else such a token adds nothing.
    """
    found: list[str] = []
    whole = 0  # tokens whose letters are complete
    for end in range(1, len(tokens) + 1):
        spans = (list(tokens[max(0, whole - 1) : to]) for to in (whole, end))  # a word may begin with a space
        before, after = (tokenizer.decode(span, skip_special_tokens=not special) for span in spans)
        complete = not after.endswith("\ufffd") or end - whole == LETTER
        found.append(after[len(before) :] if complete else "")
        whole = end if complete else whole
    return found
