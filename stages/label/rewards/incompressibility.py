"""Incompressibility: the size of an image as a JPEG file; busy images are the best."""

from stages.label.rewards._pixels import MOST, kilobytes
from stages.parts import part
from stages.records import Candidate, Prompt


@part(paper="arXiv 2305.13301", range=(0.0, 1000.0), families=("image",))
def incompressibility(prompts: list[Prompt], candidates: list[Candidate]) -> list[float | None]:
    """The kilobytes (1000 bytes) of a JPEG of quality 95, at most 1000.

    Not differentiable. An image whose short side is below 64 is first enlarged by a whole factor without smoothing.
    The panel scales a reward by its range, so that one kilobyte is a step of 1/1000: a panel of this reward alone
    wants a `temperature` of the kilobytes that should count, divided by 1000.

    Args:
        prompts: not read.
        candidates: images.

    Returns:
        Kilobytes in [0, 1000] each, None where there is no image.

    Differences from the paper: the enlargement (its images are 512x512) and the bound.

    Example: noise takes more room than one colour.

    >>> import torch
    >>> from stages.images import encode
    >>> noise = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    >>> seen = [Candidate(id="p/0", prompt="p", image=encode(x)) for x in (torch.zeros(3, 8, 8), noise)]
    >>> plain, busy = incompressibility([Prompt(id="p", messages=({"role": "user", "content": "a two"},))] * 2, seen)
    >>> 0 < plain < busy
    True

    Source: Black et al., Training Diffusion Models with Reinforcement Learning, ICLR 2024, arXiv 2305.13301.
    """
    return [min(kilobytes(c), MOST) if c.image else None for c in candidates]
