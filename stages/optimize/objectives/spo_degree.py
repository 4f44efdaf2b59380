"""SPO: DPO while a head on the policy's hidden states learns how much of an answer's key content is left in it."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from stages.batches import Pairs, Steps
from stages.parts import part
from stages.reduce import average, expected, log_ratio, pair_stats


def init(batch: Pairs, *, levels: int = 4, **_: object) -> dict[str, Tensor]:
    """The head of `spo_degree` at the start: no degree is likelier than another, so that L_degree = log n."""
    assert batch.chosen.hidden is not None, "this batch has no hidden states"
    like = batch.chosen.hidden
    return {"weight": like.new_zeros(levels, like.shape[-1]), "bias": like.new_zeros(levels)}


@part(
    paper="arXiv 2409.17791",
    equation="the alignment loss plus the weighted self-supervised loss",
    families=("text",),
    needs=("reference", "hidden", "key_rank"),
)
def spo_degree(
    batch: Pairs,
    *,
    head: dict[str, Tensor],
    beta: Annotated[float, Field(gt=0)] = 0.1,
    gamma: Annotated[float, Field(ge=0)] = 0.1,
    levels: Annotated[int, Field(ge=2)] = 4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Self-supervised Preference Optimization (of preference degrees).

        h = sum_t (logp - ref)                         m = beta * (h_chosen - h_rejected)
        z_c = mean of the states of the chosen answer's tokens without its first floor(c/(n-1) R) key phrases
        L_degree = mean_c -log softmax(W z_c + b)_c    c = 0 to n-1, of R key phrases, the most important first
        loss = -log sigmoid(m) + gamma * L_degree

    The answer without more and more of what it says is preferred less and less; a policy whose states tell how much is
    gone knows degrees of preference, where a pair only knows better and worse. The gradient of L_degree goes into the
    policy and the head; the head is learned beside the policy and then dropped.

    Args:
        batch: pairs with reference log-probs, hidden states `[b,t,d]` and ranks of key phrases; `[b,t]` in nats.
        head: `weight` W `[n,d]` and `bias` b `[n]`, at the start those of `init`.
        beta: as in DPO. Paper's base loss: 0.1.
        gamma: weight of L_degree; at 0 this is DPO. The paper's is not known to us; 0.01 to 1 are worth a try.
        levels: degrees n, none to all of the key phrases removed. The paper's is not known to us.

    Returns:
        loss `[b]` in nats, log 2 + gamma * log n at policy = reference with a new head, and statistics `[b]`: TRL's,
        and of the degrees `degree/loss`, `degree/accuracies` and `degree/told`, whether there was anything to tell.

    Time is summed in h. It is averaged in z, so that the head cannot tell a degree by the length of what is left. The
    state of a token is the one that has read it: the state that its successor is taken from. The last token, mostly
    the end, is read by none and belongs to no copy. A copy that is its predecessor's like, or empty, is left out; an
    answer without two copies has L_degree 0. With P(chosen preferred) = p, the loss is the expectation over the label,
    and the copies are those of whichever is preferred.

    Differences from the paper: of its self-supervised loss we know an outline. What follows is our reconstruction.
        1. Phrases are removed from the states of one pass over the whole answer. The states of later tokens have read
           them; in exchange copies cost no pass of their own.
        2. Degrees are those of the preferred answer alone, predicted by one linear head from mean states.
        3. n and gamma.

    Example: states -1 of "the" and 3 of "cat", the only key phrase, before an end. Copies 0 and 3 are left, z = 1 and
    -1; a head of weight (1, 0, 0, 0) gives log(e + 3) - 1 and log(1/e + 3).

    >>> mask, zero, inf = torch.ones(1, 3, dtype=torch.bool), torch.zeros(1, 3), torch.inf
    >>> hidden, rank = torch.tensor([[[0.0], [-1.0], [3.0]]]), torch.tensor([[inf, 1.0, inf]])
    >>> side = Steps(zero, mask, ref=zero, hidden=hidden, key_rank=rank)
    >>> head = {"weight": torch.tensor([[1.0], [0.0], [0.0], [0.0]]), "bias": torch.zeros(4)}
    >>> spo_degree(Pairs(side, side), head=head, gamma=1.0)[1]["degree/loss"]
    tensor([0.9790])

    Source: Li et al., Self-supervised Preference Optimization: Enhance Your Language Model with Preference Degree
    Awareness, Findings of EMNLP 2024, arXiv 2409.17791.
    """
    chosen = beta * log_ratio(batch.chosen)  # [b]
    rejected = beta * log_ratio(batch.rejected)  # [b]
    degree, right, told = _degree(batch.chosen, head, levels)
    loss, other = F.softplus(rejected - chosen) + gamma * degree, F.softplus(chosen - rejected)
    if batch.prob is not None:
        other = other + gamma * _degree(batch.rejected, head, levels)[0]
    about = {"degree/loss": degree.detach(), "degree/accuracies": right, "degree/told": told}
    return expected(batch.prob, loss, other), pair_stats(batch, chosen, rejected) | about


def _degree(steps: Steps, head: dict[str, Tensor], levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each answer L_degree, the share of its copies whose degree is told right, and whether it has any: `[b]`."""
    assert steps.hidden is not None, "this batch has no hidden states"
    assert steps.key_rank is not None, "this batch has no ranks of key phrases"
    read = steps.mask[:, 1:]  # [b,t-1] all but the last, at whose end nothing is taken
    states = torch.where(read[..., None], steps.hidden[:, 1:], 0.0)  # [b,t-1,d]
    degrees = torch.arange(levels, device=read.device)
    removed = (degrees.double() / (levels - 1)).to(steps.key_rank.dtype)  # [n] share of the key phrases
    kept = read[:, None] & (steps.key_rank[:, None, :-1] > removed[:, None])  # [b,n,t-1]
    left = kept.sum(-1)  # [b,n]
    shorter = torch.cat([left[:, -1:] < left[:, :1], left[:, 1:] < left[:, :-1]], 1)
    there = shorter & (left > 0)
    there = there & (there.sum(-1, keepdim=True) > 1)  # [b,n]
    z = kept.to(states.dtype) @ states / left.clamp(min=1)[..., None]  # [b,n,d]
    logp = (z @ head["weight"].t() + head["bias"]).log_softmax(-1)  # [b,n,n]
    loss = average(-logp.diagonal(dim1=-2, dim2=-1), there)
    right = average((logp.argmax(-1) == degrees).to(logp.dtype), there)
    return loss, right.detach(), there.any(-1).to(logp.dtype)
