"""AlignProp: the reward's gradient through a random number of the sampler's last steps."""

import random
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from stages.batches import Pathwise
from stages.parts import part


@part(paper="arXiv 2310.03739", equation="randomized truncation, section 4", families=("image",), online=True)
def alignprop(
    batch: Pathwise,
    *,
    truncation: Literal["gaussian", "uniform"] = "gaussian",
    mean: Annotated[float, Field(ge=0, le=1)] = 0.16,
    spread: Annotated[float, Field(ge=0, le=1)] = 0.1,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reward back-propagation with randomized truncation.

        K ~ N(mean * T, (spread * T)^2), rounded and clamped to 1..T; or uniform on 1..T
        loss = - r(sample(theta, c, x_T), c)          d/dtheta through the last K of T steps

    Args:
        batch: a sampler and a reward that both carry a gradient.
        truncation: how K is drawn, once a step of the optimizer.
        mean: of K, as a share of the steps. Authors' code: 8 of 50, K = T - b with b ~ N(42, 5).
        spread: standard deviation of K, as a share of the steps. Authors' code: 5 of 50.

    Returns:
        loss `[b]` in the reward's unit, and `[b]` statistics: `reward`, and `backprop_steps` the number K used.

    Time is not reduced: there is one loss for the whole trajectory.

    Differences from the paper: rewards are maximised as they are; its aesthetic loss |r - 10| equals that below its
    target. K is at least 1, since a step without a gradient learns nothing.

    Example: with no spread K is the rounded mean, here 2 of 4 steps.

    >>> import torch
    >>> theta = torch.tensor([1.5], requires_grad=True)
    >>> two_steps = Pathwise(lambda grad_steps: theta * (grad_steps == 2), lambda x: 2 * x, steps=4, name="")
    >>> alignprop(two_steps, mean=0.5, spread=0.0)[0]
    tensor([-3.], grad_fn=<NegBackward0>)

    Source: Prabhudesai et al., Aligning Text-to-Image Diffusion Models with Reward Backpropagation, 2023,
    arXiv 2310.03739.
    """
    rng = random.Random(batch.name)
    steps = batch.steps
    drawn = rng.gauss(mean * steps, spread * steps) if truncation == "gaussian" else rng.randint(1, steps)
    grad_steps = min(max(round(drawn), 1), steps)
    reward = batch.reward(batch.sample(grad_steps))
    return -reward, {"reward": reward.detach(), "backprop_steps": reward.detach() * 0 + grad_steps}
