"""Given: the score that came with the completion, where a data set brings its own judgement."""

from stages.errors import UserError
from stages.parts import part
from stages.records import Candidate, Prompt


@part(range=(0.0, 1.0))
def given(
    prompts: list[Prompt], candidates: list[Candidate], *, low: float = 0.0, high: float = 1.0
) -> list[float | None]:
    """The data's own score on the scale of [0, 1].

        r = (score - low) / (high - low)

    A candidate is known by its text among the prompt's completions; where several have that text, it gets their mean.

    Args:
        prompts: `given` holds completions with their scores.
        candidates: answers.
        low: worst score of the data's scale. UltraFeedback: 1.
        high: best score of the data's scale. UltraFeedback: 10.

    Returns:
        A number in [0, 1] each, None where no score came with that text.

    Raises:
        UserError: low is not below high, or a score lies outside of them.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},),
    ...              given=({"text": "4", "score": 9.0}, {"text": "5"}))
    >>> said = [Candidate(id="p/0", prompt="p", text=text, finished=True) for text in ("4", "5")]
    >>> given([ask, ask], said, low=1, high=9)
    [1.0, None]
    """
    if low >= high:
        raise UserError(f"low = {low:g} is not below high = {high:g}", where="reward given", mend="mend the scale")
    return [_known(prompt, candidate, low, high) for prompt, candidate in zip(prompts, candidates, strict=True)]


def _known(prompt: Prompt, candidate: Candidate, low: float, high: float) -> float | None:
    """The mean scaled score of the completions with that text."""
    scores = [
        came.score for came in prompt.given if (came.image or came.text) == candidate.content and came.score is not None
    ]
    for score in scores:
        if not low <= score <= high:
            what = f"score {score:g} lies outside {low:g}..{high:g}"
            raise UserError(what, where=f"prompt {prompt.id} given", mend="set low and high of the reward 'given'")
    return (sum(scores) / len(scores) - low) / (high - low) if scores else None
