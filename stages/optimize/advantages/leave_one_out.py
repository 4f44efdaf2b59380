"""Leave-one-out: a reward minus the mean of the other samples of its prompt, an unbiased baseline."""

from torch import Tensor

from stages.batches import Groups
from stages.parts import part
from stages.reduce import left_out


@part(paper="arXiv 2402.14740", equation="RLOO estimator")
def leave_one_out(batch: Groups) -> Tensor:
    """REINFORCE leave-one-out advantage.

        A_i = r_i - mean of r_j over j != i = K / (K - 1) * (r_i - mean_group)

    Args:
        batch: groups with rewards `[g,k]`.

    Returns:
        advantages `[g,k]` in the reward's unit, without gradient; 0 for absent members and for a sample alone. Their
        sum over a group is 0.

    The baseline of a sample does not depend on it, so the policy gradient keeps its expectation.

    Differences from the paper: its penalty on the log-ratio to the reference is not taken off the reward here; an
    objective adds its own.

    Example: rewards 3, 0, 0: the others of the first average to 0, those of the second to 1.5.

    >>> import torch
    >>> from stages.batches import Steps
    >>> there = torch.ones(1, 3, dtype=torch.bool)
    >>> steps = Steps(torch.zeros(1, 3, 1), there[..., None])
    >>> leave_one_out(Groups(steps, reward=torch.tensor([[3.0, 0.0, 0.0]]), valid=there))
    tensor([[ 3.0000, -1.5000, -1.5000]])

    Source: Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback
    in LLMs, ACL 2024, arXiv 2402.14740.
    """
    return left_out(batch)
