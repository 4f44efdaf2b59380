"""Denoising: k images of a diffusion or flow model, each from its own noise."""

from typing import Annotated, Any

from pydantic import Field

from stages.parts import part
from stages.records import Candidate, Prompt


@part(paper="arXiv 2010.02502", equation="12", families=("image",))
def denoise(
    policy: Any,
    prompts: list[Prompt],
    k: int,
    seed: int,
    *,
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None,
    eta: Annotated[float, Field(ge=0)] | None = None,
    guidance: Annotated[float, Field(ge=0)] | None = None,
) -> list[Candidate]:
    """Independent samples by DDIM steps, or by the Euler steps of a flow.

        x_{t'} = mu(x_t, t) + sigma(t) * z          sigma = eta * the DDPM posterior's; a flow's SDE at noise level eta

    Args:
        policy: what samples.
        prompts: their last messages are the captions.
        k: images of each prompt.
        seed: names the noise; the same seed gives the same images.
        steps: denoising steps, the policy's own where not given.
        eta: 0 is deterministic, 1 is DDPM; the policy's own where not given. Preference papers train with 1.
        guidance: weight of classifier-free guidance, the policy's own where not given, 1 for none.

    Returns:
        Candidates ordered by prompt, then image. They carry their trajectories where `run.policy.likelihood` is
        `trajectory` and nothing here departs from the policy's own settings, with which they will be priced.

    Differences from the paper: none.

    >>> class Grey:  # a policy whose images say how they were asked for
    ...     def sample(self, prompts, k, *, seed, steps, eta, guidance):
    ...         return [Candidate(id=f"{p.id}/{i}", prompt=p.id, image=f"{steps}") for p in prompts for i in range(k)]
    >>> ask = Prompt(id="p", messages=({"role": "user", "content": "a red circle"},))
    >>> [(c.id, c.image) for c in denoise(Grey(), [ask], 2, seed=0, steps=5)]
    [('p/0', '5'), ('p/1', '5')]

    Source: Song et al., Denoising Diffusion Implicit Models, ICLR 2021, arXiv 2010.02502; for flows Liu et al.,
    Flow-GRPO, 2025, arXiv 2505.05470.
    """
    return policy.sample(prompts, k, seed=seed, steps=steps, eta=eta, guidance=guidance)
