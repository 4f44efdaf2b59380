"""Rating: one output of a reward model that learnt several ratings, as far as it lies on their scale."""

import math
from collections.abc import Callable

from stages.parts import part
from stages.records import Candidate, Prompt


@part(paper="arXiv 2402.18571", equation="reward model, section 2", needs=("reward_model",), range=(0.0, 1.0))
def rating(
    prompts: list[Prompt],
    candidates: list[Candidate],
    *,
    scorer: Callable[[list[Prompt], list[Candidate], str], list[float]],
    output: str = "",
) -> list[float | None]:
    """What the reward model expects an answer to be rated in one aspect.

        r = min(1, max(0, s_output))

    Several stand on one panel under keys of their own: `honesty: {name: rating, output: honesty}`.

    Args:
        prompts: what was asked.
        candidates: answers.
        scorer: the trained model, `(prompts, candidates, output) -> scores`, ratings where it learnt ratings.
        output: which of its outputs, by the key of the reward that it was held to; "" where it has but one.

    Returns:
        A number in [0, 1] each; a score that is not finite is passed on, to be reported with its candidate.

    Differences from the paper: none but the scale, 0 to 1 instead of 0 to 100; ratings that a regression puts outside
    of it are cut off.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "?"},))
    >>> said = Candidate(id="p/0", prompt="p", text="Two.", finished=True)
    >>> told = {"honesty": 0.75, "detail": 1.125}
    >>> [rating([ask], [said], scorer=lambda p, c, output: [told[output]], output=name) for name in told]
    [[0.75], [1.0]]

    Source: Wang et al., Arithmetic Control of LLMs for Diverse User Preferences: Directional Preference Alignment with
    Multi-Objective Rewards, ACL 2024, arXiv 2402.18571.
    """
    return [min(1.0, max(0.0, s)) if math.isfinite(s) else s for s in scorer(prompts, candidates, output)]
