"""Does a model price packed rows as it does padded ones? Tried out before the first batch."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from stages.policies.text import head, plain
from stages.policies.text.packing import pack

if TYPE_CHECKING:
    from stages.policies.text.policy import TextPolicy

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # nats a token; half precision below
HALF = 0.2
PROMPTS, ANSWERS = (7, 4), ((5, 3), (4,))  # tokens: two prompts, the first with two answers


@torch.no_grad()
def agrees(policy: TextPolicy) -> bool:
    """Whether packed and padded log-probs of a few made-up rows are equal; one warning where they are not.

    Layers that carry a state along the sequence (recurrent, linear attention) see the neighbours of a packed row, and
    models that do not hand keywords down to their attention see everything: both differ by far more than rounding.
    """
    noise = torch.Generator().manual_seed(0)
    size = policy.causal.get_input_embeddings().weight.shape[0]

    def made_up(count: int) -> list[int]:
        return torch.randint(size, (count,), generator=noise).tolist()

    rows = [(prompt, made_up(n)) for p, sizes in zip(PROMPTS, ANSWERS) for prompt in [made_up(p)] for n in sizes]
    try:
        packed = pack(rows, policy.device)
        found = head.log_probs(policy.hidden(packed), head.of(policy.causal), packed.targets).logp
        wanted = plain.log_probs(policy.model, rows, policy.pad)
        gap = float((found - wanted.logp[wanted.mask]).abs().max())
        told = f"log-probs differ by {gap:.2g} nats"
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        gap, told = float("inf"), f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    dtype = policy.causal.get_input_embeddings().weight.dtype
    if gap <= TOLERANCE.get(dtype, HALF):  # not where it is NaN
        return True
    name = type(policy.causal).__name__
    warnings.warn(f"{name} cannot price packed rows ({told}): padded batches are used, more slowly", stacklevel=3)
    return False
