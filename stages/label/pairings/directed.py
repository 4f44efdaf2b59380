"""Directed: the answer that goes furthest in the direction which its prompt states, as a demonstration."""

import random
from collections.abc import Mapping

from stages.directions import stated
from stages.labelling import unit
from stages.pairs import completion, spec
from stages.parts import Spec, part
from stages.records import Candidate, Prompt, Single


@part(paper="arXiv 2402.18571", equation="rejection sampling under a direction", needs=("rewards",))
def directed(
    prompt: Prompt,
    candidates: list[Candidate],
    rng: random.Random,
    *,
    temperature: float,
    rewards: Mapping[str, Spec],
) -> list[Single]:
    """The candidate of the highest v . r, each reward on the scale where 0 is its worst and 1 its best.

        y* = argmax_k  v_1 * r_1(y_k) + v_2 * r_2(y_k)

    v is what the system message of the prompt states (stages/directions.py); a prompt that states none keeps the
    answer of the highest mixed score, which is plain rejection sampling. Fine-tuning on (x, v, y*) makes a policy
    that can be told what to aim at.

    Args:
        prompt: what was asked, and in which direction.
        candidates: scored answers; the rewards that v names must be on the panel, with any weight.
        rng: not used.
        temperature: not used; every pairing is handed the panel's.
        rewards: what those on the panel declare, by key.

    Returns:
        One desirable single, its completion's score v . r; none of blank answers, or of answers that lack one of the
        scores. A tie goes to the first.

    Differences from the paper: none where the panel's rewards are the outputs of one regression model (`rating`), as in
    the rounds of the recipe; before there is such a model, they are those that it learns from.

    >>> ask = Prompt(id="p", messages=({"role": "system", "content":
    ...     "Answer so that 71 * relevance + -71 * length is as high as it can be."}, {"role": "user", "content": "?"}))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, score=0.5, scores={"relevance": r, "length": l})
    ...         for i, (t, r, l) in enumerate([("long", 0.9, 1.0), ("short", 0.7, 0.2)])]
    >>> panel = {"relevance": Spec(range=(0, 1)), "length": Spec(range=(0, 1))}
    >>> kept = directed(ask, said, None, temperature=0.1, rewards=panel)
    >>> [(one.completion.text, round(one.completion.score, 3)) for one in kept]
    [('short', 0.355)]

    Source: Wang et al., Arithmetic Control of LLMs for Diverse User Preferences: Directional Preference Alignment with
    Multi-Objective Rewards, ACL 2024, arXiv 2402.18571.
    """
    v = stated(prompt.messages)
    specs = {name: spec(rewards, name, "the direction of a prompt") for name in v}
    able = [c for c in candidates if c.score is not None and not c.blank and all(name in c.scores for name in v)]
    worth = [sum(w * unit(specs[n], c.scores[n]) for n, w in v.items()) if v else c.score or 0.0 for c in able]
    if not able:
        return []
    best = max(range(len(able)), key=worth.__getitem__)
    kept = completion(able[best]).model_copy(update={"score": worth[best]})
    return [Single(id=able[best].id, messages=prompt.messages, completion=kept, label=True)]
