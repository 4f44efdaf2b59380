"""Delta-APC: by how much an answer keeps a persona's constraints better than one that says nothing of any of them."""

from typing import Any

from stages.parts import part
from stages.personas.constraints import averaged
from stages.records import Candidate, Prompt


@part(paper="arXiv 2405.07726", equation="Delta-APC", needs=("encoder",), range=(-1.0, 1.0), families=("text",))
def delta_apc(prompts: list[Prompt], candidates: list[Candidate], *, encoder: Any) -> list[float | None]:
    """APC above that of a neutral answer, which keeps all passive statements and no active one.

        r = mean_i [ g_i * e_i - (1 - g_i) * c_i ]

    g_i, e_i and c_i are those of `apc`. It compares people of different size, for whom saying nothing is worth more or
    less.

    Args:
        prompts: `checks["persona"]` is the list of statements; the user's last turn is the question.
        candidates: answers.
        encoder: `.embed(list[str])` gives rows of norm 1, `[n,d]`.

    Returns:
        A number in [-1, 1] each, 0 for an answer that says nothing, None where the prompt names no persona.

    Differences from the paper: it shows the figure without its equation; this one is the difference that its name
    tells, as a mean over the statements.

    Source: Peng and Shang, Quantifying and Optimizing Global Faithfulness in Persona-driven Role-playing, NeurIPS 2024,
    arXiv 2405.07726.
    """
    return averaged(prompts, candidates, encoder, lambda g, e, c: g * e - (1 - g) * c)
