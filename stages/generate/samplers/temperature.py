"""Temperature and nucleus sampling: k independent draws of the policy, sharpened or cut at will."""

from typing import Annotated, Any

from pydantic import Field

from stages.parts import part
from stages.records import Candidate, Prompt


@part(paper="arXiv 1904.09751", equation="2, 3", families=("text", "vision"))
def temperature(
    policy: Any,
    prompts: list[Prompt],
    k: int,
    seed: int,
    *,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    max_new_tokens: Annotated[int, Field(ge=1)] = 64,
) -> list[Candidate]:
    """Independent draws, step by step, from softmax(logits / temperature) cut to its nucleus.

    The nucleus is the smallest set of most likely values of a step whose mass reaches `top_p`.

    Args:
        policy: what samples.
        prompts: what it answers.
        k: draws of each prompt.
        seed: names the random streams; the same seed gives the same candidates.
        temperature: 1 is the policy itself, less is sharper. Preference papers: 0.7 to 1.
        top_p: mass of the nucleus, 1 for the whole distribution. Preference papers: 0.9 to 1.
        max_new_tokens: steps after which an answer is cut off.

    Returns:
        Candidates ordered by prompt, then draw. Their `logps` are the policy's own, at temperature 1 and top_p 1.

    Differences from the paper: none.

    >>> class Coin:  # a policy with two answers
    ...     def sample(self, prompts, k, *, seed, temperature, top_p, max_new_tokens):
    ...         texts = ["heads" if (seed + i) % 2 else "tails" for i in range(k)]
    ...         return [Candidate(id=f"{p.id}/{i}", prompt=p.id, text=t, finished=True)
    ...                 for p in prompts for i, t in enumerate(texts)]
    >>> toss = Prompt(id="p", messages=({"role": "user", "content": "Toss."},))
    >>> [candidate.text for candidate in temperature(Coin(), [toss], 3, seed=0)]
    ['tails', 'heads', 'tails']

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration, ICLR 2020, arXiv 1904.09751.
    """
    return policy.sample(prompts, k, seed=seed, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens)
