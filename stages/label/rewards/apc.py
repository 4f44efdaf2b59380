"""APC: the share of a persona's constraints that an answer keeps: follow what matters, never contradict the rest."""

from typing import Any

from stages.parts import part
from stages.personas.constraints import averaged
from stages.records import Candidate, Prompt


@part(paper="arXiv 2405.07726", equation="APC score", needs=("encoder",), range=(0.0, 1.0), families=("text",))
def apc(prompts: list[Prompt], candidates: list[Candidate], *, encoder: Any) -> list[float | None]:
    """Active-passive constraints.

        v_i = g_i * e_i + (1 - g_i) * (1 - c_i)          r = mean_i v_i

    g_i = P(statement i matters to the question), e_i = P(the answer entails it), c_i = P(the answer contradicts it),
    by the judge of stages/personas, which is trained on the project's own people.

    Args:
        prompts: `checks["persona"]` is the list of statements; the user's last turn is the question.
        candidates: answers.
        encoder: `.embed(list[str])` gives rows of norm 1, `[n,d]`.

    Returns:
        A number in [0, 1] each, None where the prompt names no persona; a blank answer says nothing.

    Differences from the paper:
        1. The mean over the statements instead of their sum, so that the range is that of all rewards: a margin of 0.2
           in the sum of eight statements is 0.025 here.
        2. The judge is two logistic regressions on sentence embeddings, not two fine-tuned DeBERTas.

    Source: Peng and Shang, Quantifying and Optimizing Global Faithfulness in Persona-driven Role-playing, NeurIPS 2024,
    arXiv 2405.07726.
    """
    return averaged(prompts, candidates, encoder, lambda g, e, c: g * e + (1 - g) * (1 - c))
