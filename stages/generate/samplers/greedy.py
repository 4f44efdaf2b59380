"""Greedy decoding: the most likely value at every step, so that a prompt has one answer and no luck."""

from typing import Annotated, Any

from pydantic import Field

from stages.errors import UserError
from stages.parts import part
from stages.records import Candidate, Prompt


@part(families=("text", "vision"))
def greedy(
    policy: Any, prompts: list[Prompt], k: int, seed: int, *, max_new_tokens: Annotated[int, Field(ge=1)] = 64
) -> list[Candidate]:
    """The limit of sampling at temperature 0.

    Args:
        policy: what answers; `sample` takes temperature 0 as "the most likely value".
        prompts: what it answers.
        k: must be 1, since all greedy answers of a prompt are the same.
        seed: changes nothing.
        max_new_tokens: steps after which an answer is cut off.

    Returns:
        One candidate a prompt.

    Raises:
        UserError: more than one candidate is asked for.

    >>> class Sure:  # a policy that says how it was asked
    ...     def sample(self, prompts, k, *, seed, temperature, top_p, max_new_tokens):
    ...         return [Candidate(id=f"{p.id}/0", prompt=p.id, text=f"T = {temperature}", finished=True)
    ...                 for p in prompts]
    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "Sure?"},))
    >>> greedy(Sure(), [ask], 1, seed=0)[0].text
    'T = 0.0'
    """
    if k != 1:
        raise UserError(
            f"{k} greedy answers of a prompt would all be the same", where="sampler greedy", mend="ask for 1 candidate"
        )
    return policy.sample(prompts, 1, seed=seed, temperature=0.0, top_p=1.0, max_new_tokens=max_new_tokens)
