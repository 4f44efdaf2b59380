"""What is wrong with preferences before anybody trains on them: ties, copies, length, order of showing, leaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

import numpy as np

from stages.labelling import TIE
from stages.records import Candidate, Pair, Prompt

Orders = Mapping[str, Sequence[tuple[float, float]]]  # by judge: P(chosen) shown first, P(chosen) shown second


def audit(
    candidates: Sequence[Candidate],
    pairs: Sequence[Pair],
    *,
    lower: Collection[str] = (),
    orders: Orders | None = None,
) -> dict[str, float]:
    """Figures that should be read before training; those that nothing can be said of are left out.

    | figure | what it is | of concern |
    |---|---|---|
    | `ties` | share of two candidates of a prompt that have the same score | near 1: the panel sees no difference |
    | `duplicates` | share of candidates whose text was said before for the same prompt | near 1: sample hotter |
    | `blank` | share of candidates without text or image, which make no pair | above 0 |
    | `length/correlation` | of the margin with chosen's words minus rejected's | far from 0 |
    | `length/chosen_longer` | share of pairs with chosen longer, equal lengths at 1/2 | far from 1/2 |
    | `agreement/<reward>` | share of two candidates that the reward puts in the order of the mix, ties left out | low |
    | `order/<judge>/first` | mean probability that the judge gives to the answer shown first | far from 1/2 |
    | `order/<judge>/flips` | share of pairs whose verdict turns with the order of showing | high |

    Beside them audit.json has `leaks`, see below, and where labels are flipped on purpose `flipped`, their share; the
    figures of pairs are then those of the flipped ones, which is what is trained on.

    Args:
        candidates: scored, of all prompts.
        pairs: made of them.
        lower: keys of rewards of which less is better.
        orders: what each judge said of the pairs, as `pairs.rejudge` records it.

    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, finished=True, score=s)
    ...         for i, (t, s) in enumerate([("yes", 1.0), ("yes", 1.0), ("no", 0.0), ("", 0.0)])]
    >>> {name: round(value, 3) for name, value in audit(said, []).items()}
    {'duplicates': 0.25, 'blank': 0.25, 'ties': 0.333}
    """
    twos = _same_prompt(candidates)
    said = [(c.prompt, c.content) for c in candidates]
    found = {}
    if candidates:
        found["duplicates"] = 1 - len(set(said)) / len(said)
        found["blank"] = sum(c.blank for c in candidates) / len(candidates)
    if twos:
        found["ties"] = sum(abs((one.score or 0) - (two.score or 0)) <= TIE for one, two in twos) / len(twos)
    return {**found, **_length(pairs), **_agreement(twos, lower), **_order(orders or {})}


def leaks(train: Sequence[Prompt], held_out: Sequence[Prompt]) -> int:
    """How many held-out prompts were trained on, letter case and white space aside.

    >>> one = Prompt(id="a", messages=({"role": "user", "content": "What is tea?"},))
    >>> two = Prompt(id="b", messages=({"role": "user", "content": "what is  TEA?"},))
    >>> leaks([one], [two])
    1
    """
    seen = {_plain(prompt) for prompt in train}
    return sum(_plain(prompt) in seen for prompt in held_out)


def _plain(prompt: Prompt) -> tuple[tuple[str, str], ...]:
    """A dialogue without letter case and white space."""
    return tuple((message.role, " ".join(message.content.casefold().split())) for message in prompt.messages)


def _same_prompt(candidates: Sequence[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """All two scored candidates of a prompt."""
    groups = defaultdict(list)
    for candidate in candidates:
        if candidate.score is not None:
            groups[candidate.prompt].append(candidate)
    return [two for group in groups.values() for two in combinations(group, 2)]


def _length(pairs: Sequence[Pair]) -> dict[str, float]:
    """How far pairs go with length."""
    pairs = [pair for pair in pairs if pair.chosen.text and pair.rejected.text]
    if not pairs:
        return {}
    margin = np.array([pair.margin for pair in pairs])
    longer = np.array([len(pair.chosen.text.split()) - len(pair.rejected.text.split()) for pair in pairs], float)
    found = {"length/chosen_longer": float(((np.sign(longer) + 1) / 2).mean())}
    if np.ptp(margin) > 0 and np.ptp(longer) > 0:
        found["length/correlation"] = float(np.corrcoef(margin, longer)[0, 1])
    return found


def _agreement(twos: Sequence[tuple[Candidate, Candidate]], lower: Collection[str]) -> dict[str, float]:
    """How often each reward orders two candidates as the mix does."""
    agree: dict[str, list[bool]] = defaultdict(list)
    for one, two in twos:
        mix = (one.score or 0.0) - (two.score or 0.0)
        for name in sorted(one.scores.keys() & two.scores.keys()):
            lone = one.scores[name] - two.scores[name]
            if min(abs(mix), abs(lone)) > TIE:
                agree[name].append((mix * lone > 0) != (name in lower))
    return {f"agreement/{name}": sum(same) / len(same) for name, same in agree.items()}


def _order(orders: Orders) -> dict[str, float]:
    """How far each judge goes by the place of an answer."""
    found = {}
    for judge, said in orders.items():
        if said:
            ahead, behind = np.array(said).T  # P(chosen) shown first, shown second
            found[f"order/{judge}/first"] = float((ahead + 1 - behind).mean() / 2)
            found[f"order/{judge}/flips"] = float(((ahead - 0.5) * (behind - 0.5) < 0).mean())
    return found
