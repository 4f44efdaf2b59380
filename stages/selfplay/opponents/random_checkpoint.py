"""Random checkpoint: the policy plays against any of the policies that led to it, drawn blindly."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stages.parts import part


@part(paper="arXiv 2410.05255")
def random_checkpoint(history: Sequence[Path], *, seed: Annotated[int, Field(ge=0)] = 0) -> Path:
    """One policy of the history, the first and the last included, all with equal chances.

    Args:
        history: folders of all policies so far, oldest first.
        seed: of the draw. Rounds draw apart, since their histories differ in length.

    Returns:
        The folder of the policy whose answers compete with those of the last one.

    Differences from the paper: a checkpoint is a round's policy; the paper saves one every few updates, and draws anew
    for each update. Its reference is the policy drawn: say `reference: opponent` in the round.

    >>> history = [Path("data/sft"), Path("data/optimize")]
    >>> [random_checkpoint(history, seed=seed).name for seed in range(3)]
    ['optimize', 'sft', 'sft']

    Source: Zhang et al., SePPO: Semi-Policy Preference Optimization for Diffusion Alignment, 2024, arXiv 2410.05255.
    """
    return random.Random(f"{seed}:{len(history)}").choice(history)
