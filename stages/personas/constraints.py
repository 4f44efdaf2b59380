"""What rewards on personas share: how likely each statement matters, and what an answer does to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stages.personas import judge
from stages.personas.world import CONTRADICT, ENTAIL
from stages.records import Candidate, Prompt


def averaged(
    prompts: list[Prompt], candidates: list[Candidate], encoder: Any, value: Callable[[Any, Any, Any], Any]
) -> list[float | None]:
    """The mean over a persona's statements of `value(g, e, c)`, None where the prompt names no persona.

    Args:
        prompts: `checks["persona"]` is the list of statements.
        candidates: aligned with `prompts`.
        encoder: `.embed(list[str])` gives rows of norm 1.
        value: of P(relevant), P(entailed) and P(contradicted), arrays over all statements of all prompts.
    """
    known = [prompt.checks.get("persona", []) for prompt in prompts]
    rows = [
        (statement, prompt.messages[-1].content, candidate.text if candidate.text.strip() else "...")
        for prompt, candidate, statements in zip(prompts, candidates, known, strict=True)
        for statement in statements
    ]
    if not rows:
        return [None] * len(prompts)
    asked = judge.trained(encoder)
    stance = asked.stances(rows)
    values = iter(value(asked.matters([row[:2] for row in rows]), stance[:, ENTAIL], stance[:, CONTRADICT]).tolist())
    return [sum(next(values) for _ in each) / len(each) if each else None for each in known]
