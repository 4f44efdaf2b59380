"""Colourfulness: spread and strength of an image's colours, as people were found to perceive them."""

import math

import torch
from torch import Tensor

from stages.label.rewards._pixels import colour, told
from stages.parts import part
from stages.records import Candidate, Prompt

MOST = math.sqrt(1.25 * 1.09)  # of M on channels in [0, 1], see below


@part(paper="10.1117/12.477378", equation="M3", range=(0.0, 1.0), families=("image",))
def colourfulness(prompts: list[Prompt], candidates: list[Candidate]) -> list[float | None]:
    """Hasler and Suesstrunk's measure of colourfulness, as a share of the most that any image can have.

        rg = R - G        yb = (R + G) / 2 - B
        M = sqrt(var(rg) + var(yb)) + 0.3 * sqrt(mean(rg)^2 + mean(yb)^2)        r = M / sqrt(1.25 * 1.09)

    (rg, yb) is at most sqrt(1.25) long, at pure red, green, cyan and magenta; with a mean of length m the spread is at
    most sqrt(1.25 - m^2), and sqrt(1.25 - m^2) + 0.3 m is largest, sqrt(1.25 * 1.09), at m = 0.3 sqrt(1.25 / 1.09).
    The paper's values on channels of 0 to 255 are r * 297.7: "slightly colourful" is 15 (0.05), "extremely" 109 (0.37).

    Args:
        prompts: not read.
        candidates: images.

    Returns:
        A number in [0, 1] each, 0 for a grey image, None where there is no image.

    Differences from the paper: the scale.

    Example: half red and half cyan: M = sqrt(1.25), r = 1 / sqrt(1.09).

    >>> from stages.images import encode
    >>> red = torch.tensor([1.0, -1.0, -1.0])
    >>> seen = Candidate(id="p/0", prompt="p", image=encode(torch.stack([red, -red], 1)[:, None]))
    >>> asked = Prompt(id="p", messages=({"role": "user", "content": "a flag"},))
    >>> [round(r, 4) for r in colourfulness([asked], [seen])]
    [0.9578]

    Source: Hasler and Suesstrunk, Measuring colorfulness in natural images, Human Vision and Electronic Imaging 2003.
    """
    return told(colourfulness, pixels, prompts, candidates)


def pixels(images: Tensor, prompts: list[Prompt]) -> Tensor:
    """The same `[b]` of images `[b,c,h,w]`, differentiable; the gradient of a grey image is 0."""
    r, g, b = ((colour(images).clamp(-1, 1) + 1) / 2).flatten(2).unbind(1)  # [b,h*w] each
    opponent = torch.stack([r - g, (r + g) / 2 - b], 1)  # [b,2,h*w]
    mean = opponent.mean(2)  # [b,2]
    spread = torch.linalg.vector_norm(opponent - mean[..., None], dim=(1, 2)) / math.sqrt(opponent.shape[2])
    return (spread + 0.3 * torch.linalg.vector_norm(mean, dim=1)) / MOST
