"""DRaFT: the reward's own gradient, back through the last steps of the sampler."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from stages.batches import Pathwise
from stages.parts import part


@part(paper="arXiv 2309.17400", equation="DRaFT-K and DRaFT-LV, section 4", families=("image",), online=True)
def draft(
    batch: Pathwise,
    *,
    k: Annotated[int, Field(ge=1)] = 1,
    repeats: Annotated[int, Field(ge=0)] = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct Reward Fine-Tuning with the gradient of the last K denoising steps.

        loss = - r(sample(theta, c, x_T), c)          d/dtheta through the last min(K, T) steps and the decoder
        LV:    - mean_i r(step(noised_i(x_0)), c)     d/dtheta through that one step, i = 1 .. repeats

    Args:
        batch: a sampler and a reward that both carry a gradient.
        k: steps with a gradient; at least the sampler's number of steps is DRaFT in full. Paper: 1, which it finds to
            work better than more on Stable Diffusion.
        repeats: the low-variance variant LV: the finished image, without a gradient, is noised this often to where the
            last step starts, and that step alone is differentiated; k does not matter then. Paper: 2.

    Returns:
        loss `[b]` in the reward's unit, and `[b]` statistics: `reward`, and `backprop_steps` the number K used.

    Time is not reduced: there is one loss for the whole trajectory.

    Differences from the paper: none known; its LV was derived from its description, not compared with its code.

    Example: a sampler of four steps whose image is theta, and a reward of twice the image.

    >>> import torch
    >>> theta = torch.tensor([1.5], requires_grad=True)
    >>> two_steps = Pathwise(lambda grad_steps: theta * (grad_steps == 2), lambda x: 2 * x, steps=4, name="")
    >>> draft(two_steps, k=2)[0]
    tensor([-3.], grad_fn=<NegBackward0>)

    Source: Clark et al., Directly Fine-Tuning Diffusion Models on Differentiable Rewards, ICLR 2024, arXiv 2309.17400.
    """
    grad_steps = 1 if repeats else min(k, batch.steps)
    images = batch.sample(1, repeats) if repeats else batch.sample(grad_steps)
    reward = batch.reward(images).unflatten(0, (max(1, repeats), -1)).mean(0)
    return -reward, {"reward": reward.detach(), "backprop_steps": reward.detach() * 0 + grad_steps}
