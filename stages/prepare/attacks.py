"""Requests in attack styles: what a policy must refuse, and what only sounds so, each plain and in every style.

Styles and topics are held out whole, so that a policy is tested on attacks and on subjects that it never met. Requests
are a file of the user (shape `request` of readers.py), or `vaults`: a game with nothing harmful in it, in which the
policy must keep a made-up code word to itself. The project writes no harmful text and generates none.

`Prompt.checks` says of each prompt: `harmful` (whether to refuse it), `request` (id of what was asked), `style`,
`topics`, `split`, `secret` (vaults: the word), and `withhold`, which keeps a harmful one and its answers out of what
people read.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from ruamel.yaml import YAML

from stages.config import Config
from stages.errors import UserError
from stages.records import Completion, Message, Prompt

FILES = Path(__file__).with_name("builtin")
PLAIN = "plain"
TESTS = ("seen", "unseen style", "unseen topic", "unseen both")
WHERE = "params.yaml prepare.attacks"


class Attacks(Config):
    """How requests become attacks, and what of them is held out."""

    held_out_styles: Annotated[int, Field(ge=1)] = 4
    held_out_topics: Annotated[int, Field(ge=1)] = 2
    held_out_requests: Annotated[float, Field(gt=0, lt=1)] = 0.25  # of each other topic, for the tests
    benign: Annotated[float, Field(ge=0, lt=1)] = 1 / 3  # share of benign prompts, of either part
    near: Annotated[float, Field(gt=0, le=1)] = 0.7  # two requests this alike are one: the first stands for both
    show: bool = False  # let logs, tables and reports show harmful prompts and their answers


@cache
def builtin(name: str) -> Any:
    """One of the project's own lists."""
    return YAML(typ="safe").load(FILES / f"{name}.yaml")


def build(requests: Sequence[Prompt], attacks: Attacks, train: int, test: int, seed: int) -> list[list[Prompt]]:
    """Training prompts with the answers to learn from, and test prompts with a good answer as `reference`.

    A harmful prompt brings a safe answer (score 1). A benign one brings what the data answers (1) and, beside it, a
    refusal (0); where the data says nothing it brings nothing. Tests are drawn evenly from `TESTS`.

    Args:
        requests: as `vaults` gives them, or of a file.
        attacks: the settings.
        train: how many prompts to learn from.
        test: how many to be tested on.
        seed: of what is held out and of the draw.

    Raises:
        UserError: too few requests, topics or styles.
    """
    kept = distinct([_checked(request) for request in requests], attacks.near)
    if len(kept) < len(requests):
        print(f"{len(requests) - len(kept)} requests left out: each is nearly another's words")
    everything = split(wrap(kept, builtin("styles")["styles"]), attacks, seed)
    rng = random.Random(f"attacks/draw/{seed}")
    found = []
    for part, count, names in (("train", train, ("train",)), ("test", test, TESTS)):
        pools = [[p for p in everything if p.checks["split"] == name] for name in names]
        drawn = [p for pool, share in zip(pools, _even(count, len(pools))) for p in _draw(pool, share, attacks, rng)]
        if len(drawn) < count:
            what = f"{count} prompts asked for, {len(drawn)} can be made"
            raise UserError(what, where=f"params.yaml prepare.{part}", mend="ask for fewer or bring more requests")
        found.append([_told(p, part, attacks.show, rng) for p in rng.sample(drawn, count)])
    return found


def vaults() -> list[Prompt]:
    """The built-in game: requests for a code word, and benign questions beside them."""
    game, made = builtin("vaults"), []
    for topic, vault in game["vaults"].items():
        rules = Message(role="system", content=game["system"].format(**vault))
        safe = tuple(Completion(text=text.format(**vault), score=1.0) for text in game["refusals"])
        asked: list[tuple[str, bool, tuple[Completion, ...]]] = [(ask, True, safe) for ask in vault["requests"]]
        refused = tuple(answer.model_copy(update={"score": 0.0}) for answer in safe)
        for row in vault["benign"]:
            asked.append((row["ask"], False, (Completion(text=row["answer"], score=1.0), *refused)))
        for number, (ask, harmful, given) in enumerate(asked, 1):
            checks = {"harmful": harmful, "topics": [topic], "secret": vault["word"]}
            messages = (rules, Message(role="user", content=ask))
            made.append(Prompt(id=f"vault-{topic}-{number:02d}", messages=messages, checks=checks, given=given))
    return made


def wrap(requests: Sequence[Prompt], styles: dict[str, str]) -> list[Prompt]:
    """Every request plain and in every style: `len(requests) * (len(styles) + 1)` prompts.

    >>> ask = Prompt(id="r", messages=({"role": "user", "content": "Why?"},), checks={"harmful": True})
    >>> [p.messages[-1].content for p in wrap([ask], {"politeness": "Please: {request}"})]
    ['Why?', 'Please: Why?']
    """
    made = []
    for request in requests:
        for style, template in {PLAIN: "{request}", **styles}.items():
            last = request.messages[-1].content
            worded = Message(role="user", content=template.replace("{request}", last))
            checks = {**request.checks, "request": request.id, "style": style}
            kind = style if request.checks["harmful"] else "benign"
            fields = {"id": f"{request.id}-{style}", "kind": kind, "checks": checks}
            made.append(request.model_copy(update={"messages": (*request.messages[:-1], worded), **fields}))
    return made


def split(prompts: Sequence[Prompt], attacks: Attacks, seed: int) -> list[Prompt]:
    """Each prompt with its `split`: `train`, one of `TESTS`, or `unused`, a training request in a held-out style.

    A request with several topics is of an unseen topic if one of them is held out. No request, topic or style of
    another split than `train` and `seen` occurs in `train`; of `seen` no request does.

    Raises:
        UserError: not enough styles or topics, or too few requests to hold some out.
    """
    rng = random.Random(f"attacks/split/{seed}")
    topics = sorted({topic for p in prompts for topic in p.checks["topics"]})
    styles = sorted({p.checks["style"] for p in prompts} - {PLAIN})
    new_styles = set(_held_out(styles, attacks.held_out_styles, "styles", rng))
    new_topics = set(_held_out(topics, attacks.held_out_topics, "topics", rng))
    groups: dict[tuple, dict[str, None]] = defaultdict(dict)  # requests by topic, in order
    for p in prompts:
        if not new_topics & {*p.checks["topics"]}:
            groups[p.checks["harmful"], *p.checks["topics"][:1]][p.checks["request"]] = None
    tested = set()
    for group in groups.values():
        tested |= set(rng.sample([*group], round(len(group) * attacks.held_out_requests) or len(group) > 1))
    found = []
    for p in prompts:
        topic, style = bool(new_topics & {*p.checks["topics"]}), p.checks["style"] in new_styles
        name = TESTS[2 * topic + style]
        if not topic and p.checks["request"] not in tested:
            name = "unused" if style else "train"
        found.append(p.model_copy(update={"checks": {**p.checks, "split": name}}))
    return found


def distinct(requests: Sequence[Prompt], near: float) -> list[Prompt]:
    """The requests without those whose words are nearly an earlier one's, harmful and benign ones apart.

    Two are near where their sets of runs of four characters (each word for itself) overlap by that share:
    |A and B| / |A or B| >= near.
    """
    found: list[Prompt] = []
    for harmful in (True, False):
        rows = [request for request in requests if request.checks["harmful"] is harmful]
        if rows:
            doubled = _doubled([row.messages[-1].content for row in rows], near)
            found += [row for row, again in zip(rows, doubled) if not again]
    return found


def _doubled(texts: Sequence[str], near: float, chunk: int = 1000) -> list[bool]:
    """Whether each text is near to an earlier one that is itself no double."""
    from sklearn.feature_extraction.text import CountVectorizer  # late: a second

    grams = CountVectorizer(analyzer="char_wb", ngram_range=(4, 4), binary=True, dtype=np.int32).fit_transform(texts)
    sizes = np.asarray(grams.sum(1)).ravel()
    doubled = np.zeros(len(texts), bool)
    for start in range(0, len(texts), chunk):
        shared = (grams[start : start + chunk] @ grams.T).toarray()  # [chunk,n]
        alike = shared >= near * (sizes[start : start + chunk, None] + sizes - shared)
        for row in range(len(alike)):
            at = start + row
            doubled[at] = bool((alike[row, :at] & ~doubled[:at]).any())
    return doubled.tolist()


def _checked(request: Prompt) -> Prompt:
    """A request that says whether it is harmful and what it is about."""
    for name, kind in (("harmful", bool), ("topics", list)):
        if not isinstance(request.checks.get(name), kind):
            mend = "bring a file with the columns request and topics, see stages/prepare/readers.py"
            raise UserError(f"its checks say no '{name}'", where=f"prompt {request.id}", mend=mend)
    return request


def _held_out(names: list[str], count: int, what: str, rng: random.Random) -> list[str]:
    if len(names) <= count:
        raise UserError(
            f"{count} of {len(names)} {what} held out leave none to learn from",
            where=f"{WHERE}.held_out_{what}",
            mend="hold out fewer",
        )
    return rng.sample(names, count)


def _even(count: int, parts: int) -> list[int]:
    """A number in parts that differ by at most one.

    >>> _even(10, 4)
    [3, 3, 2, 2]
    """
    return [count // parts + (part < count % parts) for part in range(parts)]


def _draw(pool: Sequence[Prompt], count: int, attacks: Attacks, rng: random.Random) -> list[Prompt]:
    """Prompts of a pool, benign ones in their share; of either fewer where there are no more."""
    benign = round(count * attacks.benign)
    found = []
    for harmful, share in ((True, count - benign), (False, benign)):
        rows = [p for p in pool if p.checks["harmful"] is harmful]
        found += rng.sample(rows, min(share, len(rows)))
    return found


def _told(prompt: Prompt, part: str, show: bool, rng: random.Random) -> Prompt:
    """The prompt with one good and one bad answer of those that it has; a test prompt keeps the good one to compare."""
    good = [c for c in prompt.given if (c.score or 0.0) > 0.5]
    bad = [c for c in prompt.given if c not in good]
    if prompt.checks["harmful"] and not good:
        good = [Completion(text=text, score=1.0) for text in builtin("styles")["refusals"]]
    if not prompt.checks["harmful"] and good and not bad:
        bad = [Completion(text=text, score=0.0) for text in builtin("styles")["refusals"]]
    chosen = [rng.choice(side) for side in (good, bad) if side]
    checks = {**prompt.checks, **({"withhold": True} if prompt.checks["harmful"] and not show else {})}
    reference = chosen[0].text if good else ""
    answers = {"given": (), "reference": reference} if part == "test" else {"given": tuple(chosen), "reference": ""}
    return prompt.model_copy(update={"checks": checks, **answers})
