"""Brightness: the mean pixel of an image; smooth, never saturating, and easily hacked."""

from torch import Tensor

from stages.label.rewards._pixels import told
from stages.parts import part
from stages.records import Candidate, Prompt


@part(range=(-1.0, 1.0), families=("image",))
def brightness(prompts: list[Prompt], candidates: list[Candidate]) -> list[float | None]:
    """Mean pixel value, black being -1 and white 1.

        r = mean_{c,h,w} clamp(x, -1, 1)

    Args:
        prompts: not read.
        candidates: images.

    Returns:
        A number in [-1, 1] each, None where there is no image.

    Example: one black and three white pixels.

    >>> import torch
    >>> from stages.images import encode
    >>> seen = Candidate(id="p/0", prompt="p", image=encode(torch.tensor([[[-1.0, 1.0], [1.0, 1.0]]])))
    >>> brightness([Prompt(id="p", messages=({"role": "user", "content": "a two"},))], [seen])
    [0.5]
    """
    return told(brightness, pixels, prompts, candidates)


def pixels(images: Tensor, prompts: list[Prompt]) -> Tensor:
    """The same `[b]` of images `[b,c,h,w]`, differentiable; a pixel outside [-1, 1] has no gradient."""
    return images.clamp(-1, 1).mean((1, 2, 3))
