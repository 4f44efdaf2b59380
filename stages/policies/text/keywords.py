"""The key phrases of a text by RAKE, the most important first, and the tokens that they are made of.

A candidate phrase is a run of words with neither a stop word nor a mark between them. A word scores the number of words
that it stands beside in all candidates, itself included, over its own number: degree / frequency. A phrase scores the
sum of its words'. So words that keep company in long phrases count, words that stand anywhere do not.

Source: Rose et al., Automatic Keyword Extraction from Individual Documents, Text Mining, 2010.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

Span = tuple[int, int]  # first character, and the one after the last
WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
STOP = frozenset(
    """
    a about above across after again against all almost also although always am among an and another any anyone
    anything are aren't around as at away be became because become been before began behind being below beside between
    beyond both but by came can can't cannot come could couldn't did didn't do does doesn't doing don't done down during
    each either else enough even ever every everyone everything except few first for from further get gets give given go
    goes going got had hadn't has hasn't have haven't having he her here hers herself him himself his how however i i'd
    i'll i'm i've if in indeed instead into is isn't it it's its itself just keep least less let let's like made make
    makes many may me might mine more most much must my myself neither never no nobody none nor not nothing now of off
    often on once one only onto or other others our ours ourselves out over own per perhaps quite rather really same
    shall she should shouldn't since so some someone something sometimes soon still such than that that's the their
    theirs them themselves then there there's therefore these they they're this those though through thus to together
    too toward towards under until up upon us use used using very was wasn't we we're well were weren't what what's
    whatever when where whether which while who whom whose why will with within without won't would wouldn't yes yet you
    you'd you'll you're you've your yours yourself yourselves
    """.split()
)


def phrases(text: str) -> list[list[Span]]:
    """Where each distinct key phrase stands, the most important phrase first; of equal ones the first in the text.

    >>> text = "The mercury thermometer broke. Mercury is toxic."
    >>> [[text[first:end] for first, end in spans] for spans in phrases(text)]
    [['mercury thermometer broke'], ['Mercury'], ['toxic']]
    """
    found: dict[tuple[str, ...], list[Span]] = {}
    frequency: Counter[str] = Counter()
    degree: Counter[str] = Counter()
    for run in runs(text):
        words = tuple(each.group().lower() for each in run)
        found.setdefault(words, []).append((run[0].start(), run[-1].end()))
        for word in words:
            frequency[word] += 1
            degree[word] += len(words)
    score = {words: sum(degree[word] / frequency[word] for word in words) for words in found}
    return [found[words] for words in sorted(found, key=lambda words: -score[words])]


def runs(text: str) -> list[list[re.Match[str]]]:
    """Words that stand together: candidates for phrases."""
    together: list[list[re.Match[str]]] = []
    end = -1  # of the last word that counts; nothing but white space may follow it
    for word in WORD.finditer(text):
        if word.group().lower().replace("\u2019", "'") in STOP:
            end = -1
            continue
        if end >= 0 and text[end : word.start()].isspace() and "\n" not in text[end : word.start()]:
            together[-1].append(word)
        else:
            together.append([word])
        end = word.end()
    return together


def ranks(pieces: Sequence[str]) -> list[float]:
    """Of each piece of a text the rank of the key phrase that it is part of: 1/n of the first of n, 1 of the last.

    Infinite where it is part of none. A piece that reaches into two phrases takes the more important one's.

    >>> ranks(["The ", "cat", " is", " on a", " red", " mat", "."])
    [inf, 1.0, inf, inf, 0.5, 0.5, inf]
    """
    text = "".join(pieces)
    found, of = phrases(text), [math.inf] * len(text)  # the rank of each character
    for rank, spans in enumerate(found, 1):
        for first, end in spans:
            of[first:end] = [rank / len(found)] * (end - first)
    ends = accumulate(map(len, pieces))
    return [min(of[end - len(piece) : end], default=math.inf) for piece, end in zip(pieces, ends, strict=True)]
