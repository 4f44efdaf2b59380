"""GRPO: the clipped policy gradient of each step by its sample's advantage in the group, and a KL to the reference."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import LARGEST, advantages, average, clipped, drift, drift_stats, length, total


@part(
    paper="arXiv 2402.03300",
    equation="3, 4",
    families=("text", "control", "tabular"),
    needs=("behaviour", "advantage", "reference"),
    idle=(("reference", "beta"),),
    online=True,
)
def grpo(
    batch: Groups,
    *,
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2,
    clip_high: Annotated[float, Field(gt=0)] = 0.2,
    beta: Annotated[float, Field(ge=0)] = 0.04,
    loss_type: Literal["grpo", "dr_grpo", "bnpo", "dapo"] = "grpo",
    max_completion_length: Annotated[int, Field(ge=1)] = 64,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Group Relative Policy Optimization.

        rho_t = exp(logp_t - old_t)          kl_t = exp(ref_t - logp_t) - (ref_t - logp_t) - 1
        l_t = max(-A * rho_t, -A * clip(rho_t, 1 - clip_low, 1 + clip_high)) + beta * kl_t
        loss = sum_t l_t / n

    Args:
        batch: groups with behaviour log-probs, advantages `[g,k]` (outcome supervision) or `[g,k,t]` (process
            supervision) and, unless beta is 0, reference log-probs; steps `[g,k,t]` in nats.
        clip_low: how far below 1 a ratio may go and still be counted. Paper and TRL: 0.2.
        clip_high: the same above 1. Paper and TRL: 0.2; DAPO: 0.28.
        beta: pull towards the reference; 0 leaves it out, and the reference is not read. Paper: 0.04; TRL: 0.
        loss_type: what n is, by TRL's names. `grpo`, the paper's: the sample's own number of steps. `dr_grpo`:
            `max_completion_length`, the same for all samples, so that no length is favoured. `bnpo`: the mean number of
            steps of the samples in the forward pass, which makes the mean loss one over tokens. `dapo`, TRL's default:
            the mean number of steps of all samples of the step, the same however many forward passes that takes.
        max_completion_length: n under `dr_grpo`, the only one to read it: the sampler's `max_new_tokens`.

    Returns:
        loss `[g,k]`, 0 for absent members; and statistics `[g]`: `kl`, mean over the steps of the group, where beta is
        not 0; `clip_ratio`, the share of steps outside the clip range; `approx_kl`, mean of log(rho)^2 / 2.

    Time is averaged over a sample's own steps in the paper, so that each step of a long answer counts for less;
    `loss_type` says by what else the sum may be divided. Where all samples have one length, n differs by a constant.

    Differences from the paper:
        1. Where a step has become e^20 times less likely than under the reference, its kl has no gradient any more.
        2. `dr_grpo`, `bnpo` and `dapo` are no part of it; Dr. GRPO also leaves out the division by the deviation, which
           is `std: none` of the advantage `group`.

    Example: at rho = 1 every step costs -A, here averaged over one step and over two; against a constant length of 4
    the longer sample weighs twice as much.

    >>> from stages.batches import Steps
    >>> mask, zero = torch.tensor([[[True, False], [True, True]]]), torch.zeros(1, 2, 2)
    >>> group = Groups(Steps(zero, mask, old=zero, ref=zero), reward=zero[..., 0], valid=mask[..., 0],
    ...                advantage=torch.tensor([[1.0, -1.0]]))
    >>> grpo(group)[0]
    tensor([[-1.,  1.]])
    >>> grpo(group, loss_type="dr_grpo", max_completion_length=4)[0]
    tensor([[-0.2500,  0.5000]])

    Source: Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, 2024,
    arXiv 2402.03300; `dr_grpo`: Liu et al., 2025, arXiv 2503.20783; `dapo`: Yu et al., 2025, arXiv 2503.14476.
    """
    mask, log_ratio = batch.steps.mask, drift(batch.steps)  # [g,k,t]
    there = mask & batch.valid[..., None]
    by_step = clipped(log_ratio, advantages(batch), clip_low, clip_high)
    stats = drift_stats(batch, log_ratio, clip_low, clip_high)
    if beta:
        assert batch.steps.ref is not None, "this batch has no reference"
        away = (batch.steps.ref - batch.steps.logp).clamp(max=LARGEST)  # before exp, in padding too
        kl = away.expm1() - away  # its small values survive float32, unlike those of exp - 1
        by_step = by_step + beta * kl
        stats["kl"] = average(kl.detach().flatten(-2), there.flatten(-2))
    here = there.sum().clamp(min=1).to(by_step) / batch.valid.sum().clamp(min=1)  # in this forward pass
    n: dict[str, Tensor | int] = {
        "grpo": length(mask),
        "dr_grpo": max_completion_length,
        "bnpo": here,
        "dapo": here if batch.length is None else batch.length,
    }
    return torch.where(batch.valid, total(by_step, mask) / n[loss_type], 0.0), stats
