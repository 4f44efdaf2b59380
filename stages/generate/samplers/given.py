"""Given: the completions that came with the prompt, where a data set brings its own answers."""

from typing import Any

from stages.errors import UserError
from stages.parts import part
from stages.records import Candidate, Prompt


@part()
def given(policy: Any, prompts: list[Prompt], k: int, seed: int) -> list[Candidate]:
    """The first k completions of each prompt, in the order of the data.

    Args:
        policy: not asked; may be None.
        prompts: with `given` completions.
        k: most to take of a prompt; a prompt with fewer gives what it has.
        seed: changes nothing.

    Returns:
        Candidates named `<prompt id>/<i>`, without log-probs. A score that came with the completion stands in `scores`
        as "given".

    Raises:
        UserError: a prompt came with no completion.

    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "2 + 2?"},),
    ...              given=({"text": "4", "score": 1.0}, {"text": "5"}))
    >>> [(c.id, c.text, c.scores) for c in given(None, [ask], 4, seed=0)]
    [('p/0', '4', {'given': 1.0}), ('p/1', '5', {})]
    """
    for prompt in prompts:
        if not prompt.given:
            mend = "give it completions, or choose a sampler that asks the policy"
            raise UserError("came with no completions", where=f"prompt {prompt.id}", mend=mend)
    return [
        Candidate(
            id=f"{prompt.id}/{i}",
            prompt=prompt.id,
            text=came.text,
            finished=came.finished,
            tokens=came.tokens,
            image=came.image,
            scores={} if came.score is None else {"given": came.score},
        )
        for prompt in prompts
        for i, came in enumerate(prompt.given[:k])
    ]
