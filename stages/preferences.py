"""Scored candidates to preferences: what the label stage and a self-play round do alike."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import declared, labelling, records
from stages.config import Choice
from stages.errors import UserError
from stages.pairs import rejudge
from stages.panel import Panel, Tools
from stages.parts import Spec
from stages.records import Candidate, Pair, Prompt, Ranking, Single

Preference = Pair | Single | Ranking


def make(
    panel: Panel,
    pairing: Choice,
    prompts: list[Prompt],
    candidates: list[Candidate],
    tools: Tools,
    *,
    seed: int,
    where: str,
    orders: dict[str, list[tuple[float, float]]] | None = None,
) -> tuple[list[Candidate], list[Preference]]:
    """Score all candidates, pair those of each prompt, let the judges weigh in.

    Returns:
        The candidates with their scores, and the preferences.

    Raises:
        UserError: no preference came of it.
    """
    scored = labelling.score(panel, labelling.align(prompts, candidates), candidates, tools)
    made = pair(pairing, prompts, scored, panel.temperature, declared.of(panel), seed, where)
    pairs = [p for p in made if isinstance(p, Pair)]
    judged = rejudge(panel, {p.id: p for p in prompts}, pairs, tools, orders=orders)
    return scored, [*judged, *(p for p in made if not isinstance(p, Pair))]


def pair(
    pairing: Choice,
    prompts: Sequence[Prompt],
    scored: Sequence[Candidate],
    temperature: float,
    rewards: Mapping[str, Spec],
    seed: int,
    where: str,
) -> list[Preference]:
    """The preferences that a pairing rule makes of scored candidates, prompt by prompt.

    Every prompt draws from its own seeded generator, so that its pairs do not depend on the other prompts.

    Args:
        pairing: the rule.
        prompts: what was asked.
        scored: answers.
        temperature: the panel's.
        rewards: what its rewards declare, by key.
        seed: of the draws.
        where: node of params.yaml that chose the rule.

    Raises:
        UserError: no preference came of it.
    """
    part, settings = pairing.part("pairing", f"{where}.pairing")
    handed = {"temperature": temperature, **({"rewards": rewards} if "rewards" in part.spec.needs else {})}
    by_prompt: dict[str, list[Candidate]] = {}
    for candidate in scored:
        by_prompt.setdefault(candidate.prompt, []).append(candidate)
    made: list[Preference] = []
    for prompt in prompts:
        rng = random.Random(f"{seed}:{prompt.id}")
        made += part.function(prompt, by_prompt.get(prompt.id, []), rng, **handed, **settings)
    if not made:
        raise UserError(
            f"the pairing '{pairing.name}' makes no preference of these candidates",
            where=f"params.yaml {where}",
            mend="sample more candidates, at a higher temperature, or change the rewards",
        )
    return made


def flip(made: Sequence[Preference], share: float, seed: int) -> tuple[list[Preference], list[str]]:
    """Preferences as labellers who err would tell them, and the ids of those that were turned round.

    Every label is flipped by itself, from a draw of its own: the other side of a pair is called the better one, with
    the same probability, margin and rates; a good single is called bad. What is flipped at a small share is flipped at
    a larger one too. Scores stay with their completions, so that the truth can still be read.

    Raises:
        UserError: a ranking, which has no one label to flip.
    """
    turned = {p.id for p in made if random.Random(f"{seed}:flip:{p.id}").random() < share}
    return [_turned(p) if p.id in turned else p for p in made], sorted(turned)


def _turned(preference: Preference) -> Preference:
    if isinstance(preference, Ranking):
        mend = "choose a pairing that makes pairs or singles, or no flips"
        raise UserError("a ranking has no label to flip", where="params.yaml label.flip", mend=mend)
    if isinstance(preference, Single):
        return preference.model_copy(update={"label": None if preference.label is None else not preference.label})
    return preference.model_copy(update={"chosen": preference.rejected, "rejected": preference.chosen})


def read(path: Path) -> list[Preference]:
    """Read a file of pairs, of rankings or of singles.

    Raises:
        UserError: naming file, line and field; or the file is empty.
    """
    first = next(records.rows(path), None)
    if first is None:
        raise UserError("holds no preference", where=str(path), mend="rerun the stage that writes it")
    kind = next(k for field, k in (("chosen", Pair), ("completions", Ranking), ("id", Single)) if field in first[1])
    found: list[Preference] = list(records.read(path, kind))
    return found


def summary(scored: Sequence[Candidate], made: Sequence[Preference]) -> dict[str, float]:
    """How many, how clear, and the mean of every score."""
    told: dict[str, list[float]] = {"reward": [c.score for c in scored if c.score is not None]}
    for candidate in scored:
        for name, value in candidate.scores.items():
            told.setdefault(f"rewards/{name}", []).append(value)
    pairs = [p for p in made if isinstance(p, Pair)]
    told |= {name: [getattr(p, name) for p in pairs] for name in ("prob", "margin")}
    means = {name: sum(values) / len(values) for name, values in told.items() if values}
    return {"preferences": float(len(made)), **means}


def table(prompts: Sequence[Prompt], scored: Sequence[Candidate]) -> list[dict[str, Any]]:
    """Candidates beside their prompts, for a person to read."""
    asked = {p.id: p for p in prompts}
    return [
        {
            "prompt": ask.shown(ask.messages[-1].content),
            "completion": ask.shown(c.text),
            "image": c.image,
            "score": c.score,
            **c.scores,
        }
        for c, ask in ((c, asked[c.prompt]) for c in scored)
    ]
