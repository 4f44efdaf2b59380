"""Self-revision: answer, then let the policy itself improve its answer some times; the last version is kept."""

from typing import Annotated, Any

from pydantic import Field

from stages.parts import part
from stages.records import Candidate, Prompt
from stages.revision import asked


@part(paper="arXiv 2406.01660", families=("text", "vision"))
def revise(
    policy: Any,
    prompts: list[Prompt],
    k: int,
    seed: int,
    *,
    revisions: Annotated[int, Field(ge=0)] = 1,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0,
    max_new_tokens: Annotated[int, Field(ge=1)] = 64,
) -> list[Candidate]:
    """The ends of k independent chains of revisions.

        y_0 ~ policy(. | x)        y_{i+1} ~ policy(. | x, y_i, "revise it")        y = y_N

    Args:
        policy: what samples; one that SRPO trained gains by it.
        prompts: what it answers.
        k: candidates wanted of each prompt.
        seed: names the random streams.
        revisions: N; 0 is the policy itself. Paper: 0 to 5.
        temperature: of every draw.
        top_p: mass of the nucleus of every draw.
        max_new_tokens: steps after which an answer, or a revision, is cut off.

    Returns:
        Candidates ordered by prompt and chain, named `<prompt id>/<chain>`. Their `logps` and `entropy` are those of
        the last revision given the answer before it, not of an answer to the prompt.

    A candidate costs N + 1 answers: compare with the best of N + 1.

    Differences from the paper: the wish for a better answer has words of our own (stages/revision.py).

    Example: a policy that adds one to what it said before, asked twice.

    >>> class Adding:
    ...     def sample(self, prompts, k, *, seed, temperature, top_p, max_new_tokens):
    ...         return [Candidate(id=f"{p.id}/{i}", prompt=p.id, text=str(len(p.messages) // 2 and
    ...                           int(p.messages[-2].content) + 1)) for p in prompts for i in range(k)]
    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "Count."},))
    >>> [(c.id, c.text) for c in revise(Adding(), [ask], 2, seed=0, revisions=2)]
    [('p/0', '2'), ('p/1', '2')]

    Source: Choi et al., Self-Improving Robust Preference Optimization, ICLR 2025, arXiv 2406.01660.
    """
    how = {"seed": seed, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    drawn = policy.sample(prompts, k, **how)
    dialogue = [prompt.messages for prompt in prompts for _ in range(k)]
    names = [(candidate.id, candidate.prompt) for candidate in drawn]
    for i in range(revisions):
        wishes = [
            Prompt(id=f"{name}~{i + 1}", messages=asked(messages, candidate.text))
            for (name, _), messages, candidate in zip(names, dialogue, drawn, strict=True)
        ]
        drawn = policy.sample(wishes, 1, **how)
    return [c.model_copy(update={"id": name, "prompt": prompt}) for c, (name, prompt) in zip(drawn, names, strict=True)]
