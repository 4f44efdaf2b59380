"""Verifier: the share of a prompt's wishes that a picture of a scene grants, seen without a model."""

from stages import images
from stages.parts import part
from stages.records import Candidate, Prompt
from stages.scenes.look import verify


@part(paper="arXiv 2310.11513", range=(0.0, 1.0), families=("image",))
def verifier(prompts: list[Prompt], candidates: list[Candidate], *, partial: bool = True) -> list[float | None]:
    """GenEval's check with rules in place of a trained detector, for scenes of flat shapes.

    The wishes are how many objects there are, the shape, colour and size of each, and their relation, see
    `stages.scenes.look.verify`.

    Args:
        prompts: `checks["objects"]` and perhaps `checks["relation"]` hold the wishes, see `stages/scenes/words.py`.
        candidates: pictures.
        partial: give the share of the wishes that are granted; else 1 where all are, and 0 elsewhere, as GenEval does.

    Returns:
        A number in [0, 1] each, None where the prompt wishes no objects; 0 where there is no picture.

    Raises:
        UserError: checks that are not a scene, or a candidate whose image is no picture.

    Differences from the paper: the detector; objects that nobody asked for are always a fault, not in counting only;
    sizes; partial scores.

    Example: right shape and number, wrong colour.

    >>> from stages.scenes.draw import render
    >>> from stages.scenes.words import Scene, Thing
    >>> blue, red = (Scene(objects=(Thing(shape="cross", color=color),)) for color in ("blue", "red"))
    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "a red cross"},), checks=red.checks)
    >>> shown = [Candidate(id="p/0", prompt="p", image=images.encode(render(spec, 0))) for spec in (red, blue)]
    >>> [round(score, 3) for score in verifier([ask, ask], shown)]
    [1.0, 0.667]
    >>> verifier([ask, ask], shown, partial=False)
    [1.0, 0.0]

    Source: Ghosh et al., GenEval: An Object-Focused Framework for Evaluating Text-to-Image Alignment, NeurIPS 2023.
    """
    return [_granted(prompt, candidate, partial) for prompt, candidate in zip(prompts, candidates, strict=True)]


def _granted(prompt: Prompt, candidate: Candidate, partial: bool) -> float | None:
    if "objects" not in prompt.checks:
        return None
    if not candidate.image:
        return 0.0
    verdict = verify(images.decode(candidate.image), prompt.checks, where=f"prompt {prompt.id} checks")
    return verdict["score"] if partial else float(verdict["correct"])
