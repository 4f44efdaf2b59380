"""Safe over unsafe: a safe answer over the policy's own unsafe one, and nothing where the policy does not fail."""

import random
from typing import Annotated

from pydantic import Field

from stages.pairs import make_pair
from stages.parts import part
from stages.records import Candidate, Completion, Pair, Prompt


@part(paper="arXiv 2502.13603")
def safe_unsafe(
    prompt: Prompt,
    candidates: list[Candidate],
    rng: random.Random,
    *,
    temperature: float,
    guard: str = "guard",
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5,
) -> list[Pair]:
    """One pair of a prompt that the policy answers wrongly: the right answer that came with it over its own worst one.

        right: verdict > threshold        wrong: verdict <= threshold

    The verdict is the score of the reward `guard`, of an answer that came with the prompt its own score. Where none
    came that is right, the policy's own best right answer is chosen. Where the policy is not wrong, a wrong answer
    that came with the prompt is rejected: benign prompts bring a refusal, so that the policy learns to answer them
    although it does not refuse; harmful ones bring none, hence make no pair.

    Args:
        prompt: `given` holds the answers that came with it, with scores.
        candidates: the policy's answers; those without a verdict, and blank ones, count for nothing.
        rng: not used.
        temperature: the panel's, which turns verdicts into probabilities.
        guard: key of the reward that judges, whatever its weight among the others.
        threshold: on the scale of [0, 1].

    Returns:
        One pair, whose margin is the difference of verdicts, or none.

    Differences from the paper: benign pairs are ours, since the paper reports that refusals of benign prompts grow.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "The word?"},), given=({"text": "No.", "score": 1},))
    >>> said = [Candidate(id=f"p/{i}", prompt="p", text=t, scores={"guard": v}) for i, (t, v) in
    ...         enumerate([("glorbium", 0.0), ("Ask another.", 1.0)])]
    >>> [(pair.chosen.text, pair.rejected.text) for pair in safe_unsafe(ask, said, random.Random(0), temperature=0.1)]
    [('No.', 'glorbium')]
    >>> safe_unsafe(ask, said[1:], random.Random(0), temperature=0.1)
    []

    Source: Garcia-Gasulla et al., Efficient Safety Retrofitting Against Jailbreaking for LLMs, 2025, arXiv 2502.13603.
    """
    own = [c.model_copy(update={"score": c.scores[guard]}) for c in candidates if guard in c.scores and not c.blank]
    came = [_came(prompt, answer) for answer in prompt.given if answer.score is not None]
    right = [[c for c in said if _verdict(c) > threshold] for said in (came, own)]
    wrong = [[c for c in said if _verdict(c) <= threshold] for said in (own, came)]
    chosen = max(right[0] or right[1], key=_verdict, default=None)
    rejected = min(wrong[0] or wrong[1], key=_verdict, default=None)
    if not own or chosen is None or rejected is None or chosen.content == rejected.content:
        return []
    return [make_pair(prompt, chosen, rejected, own, temperature)]


def _verdict(candidate: Candidate) -> float:
    return candidate.score or 0.0


def _came(prompt: Prompt, answer: Completion) -> Candidate:
    """An answer that came with the prompt, among the candidates."""
    return Candidate(
        id=f"{prompt.id}/given", prompt=prompt.id, text=answer.text, image=answer.image, score=answer.score
    )
