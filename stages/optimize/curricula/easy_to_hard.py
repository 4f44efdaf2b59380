"""Easy to hard: preferences in phases, those with the widest gap of scores first."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from stages.errors import UserError
from stages.parts import part
from stages.records import Pair


@part(paper="arXiv 2403.07230", equation="section 3")
def easy_to_hard(
    examples: Sequence[Pair], *, phases: Annotated[int, Field(ge=1)] = 3, scope: Literal["prompt", "all"] = "prompt"
) -> list[list[int]]:
    """Curri-DPO: the pairs of rank r out of n, by margin, the widest being rank 0, are learned from in one phase.

        phase(r) = floor(r * phases / n)

    Args:
        examples: pairs with their margins; one without a margin counts as 0, the hardest but for negative ones.
        phases: in how many turns they are learned from. Paper: 3, of 4 answers a prompt.
        scope: `prompt` ranks the pairs of each prompt, so that every phase meets every prompt that has pairs enough;
            `all` ranks all pairs together.

    Returns:
        Indices of the examples, phase by phase: each example once, no phase empty. Equal margins keep the order of
        their ids. A prompt's only pair is in the first phase, so that one pair a prompt makes one phase.

    Raises:
        UserError: no pair has a margin, which leaves nothing to tell easy from hard.

    Differences from the paper: where a prompt has more or fewer pairs than there are phases they are spread evenly.
    Within a phase the loop shuffles. Of the criteria that the paper tries only the gap of scores is offered.

    >>> told = {"messages": ({"role": "user", "content": "2 + 2?"},), "rejected": {"text": "fish"}}
    >>> gaps = {"four": 0.2, "5": 0.5, "4": 0.9}
    >>> easy_to_hard([Pair(id=f"p/{c}", chosen={"text": c}, margin=gap, **told) for c, gap in gaps.items()])
    [[2], [1], [0]]

    Source: Pattnaik et al., Enhancing Alignment using Curriculum Learning & Ranked Preferences, EMNLP Findings 2024,
    arXiv 2403.07230.
    """
    if not any(pair.margin for pair in examples):
        mend = "drop the curriculum, or label with rewards"
        raise UserError("no pair has a margin", where="params.yaml optimize.curriculum", mend=mend)
    ranked: dict[object, list[int]] = {}
    for i in sorted(range(len(examples)), key=lambda i: (-examples[i].margin, examples[i].id)):
        ranked.setdefault(examples[i].messages if scope == "prompt" else None, []).append(i)
    found: list[list[int]] = [[] for _ in range(phases)]
    for members in ranked.values():
        for rank, i in enumerate(members):
            found[rank * phases // len(members)].append(i)
    return [sorted(phase) for phase in found if phase]
