"""Beam search: the likeliest answers of the policy; of one that DPO trained, a search by its own value function."""

from typing import Annotated, Any

from pydantic import Field

from stages.errors import UserError
from stages.parts import part
from stages.policies.text.beam import search
from stages.records import Candidate, Prompt


@part(paper="arXiv 2404.12358", equation="section 5.2", families=("text",))
def beam(
    policy: Any,
    prompts: list[Prompt],
    k: int,
    seed: int,
    *,
    beams: Annotated[int, Field(ge=1)] = 4,
    max_new_tokens: Annotated[int, Field(ge=1)] = 64,
) -> list[Candidate]:
    """The k likeliest of the answers that a search with some beams finds.

        score = sum_t log policy(y_t | x, y_<t)         of the beams and all that may follow them, the best are kept

    An answer that has ended keeps its place until better ones push it out, and there is no penalty on length. At the
    optimum of DPO the log-prob of an answer is its reward / beta plus its log-prob under the reference, less what all
    answers to the prompt share: the likeliest answer is the one of the highest regularized reward.

    Args:
        policy: a text policy; the statement is about one that was trained by DPO. Of one that was not, the likeliest
            answers are often short.
        prompts: what it answers.
        k: answers wanted of each prompt, at most `beams`.
        seed: changes nothing.
        beams: partial answers kept side by side; 1 is greedy. Paper: 1 to 10, best at 5.
        max_new_tokens: steps after which an answer is cut off; it competes as it is.

    Returns:
        Candidates ordered by prompt, then likelihood.

    Raises:
        UserError: more answers than beams are asked for.

    More beams find likelier answers, not always better ones: where the policy is far from its optimum, or its labels
    were noisy, quality falls again. Look at several.

    Differences from the paper: none.

    >>> beam(None, [], 5, seed=0, beams=4)
    Traceback (most recent call last):
    stages.errors.UserError: sampler beam: 5 answers of a prompt from 4 beams; raise beams

    Source: Rafailov et al., From r to Q*: Your Language Model is Secretly a Q-Function, COLM 2024, arXiv 2404.12358.
    """
    if k > beams:
        what = f"{k} answers of a prompt from {beams} beams"
        raise UserError(what, where="sampler beam", mend="raise beams")
    return search(policy, prompts, k, beams=beams, max_new_tokens=max_new_tokens)
