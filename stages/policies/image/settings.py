"""What params.yaml may say of an image policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stages.config import Config


class ImageSettings(Config):
    """The node `run.policy` of the family `image`."""

    likelihood: Literal["elbo", "trajectory"] = "elbo"  # seeded denoising error, or exact log-prob of sampled steps
    levels: Annotated[int, Field(ge=1)] = 1  # elbo: noise levels an image is priced at
    weight: Literal["half", "uniform", "t", "t2", "huber", "ghuber"] = "half"  # elbo: see noise.weighted
    drop_prompt: Annotated[float, Field(ge=0, lt=1)] = 0.0  # elbo: share of draws that see an empty caption
    trajectory_steps: Literal["one", "all"] = "one"  # trajectory: one seeded step a draw, or every step
    steps: Annotated[int, Field(ge=1, le=1000)] = 10  # denoising steps of a sample
    eta: Annotated[float, Field(ge=0, le=1)] = 1.0  # diffusion: 0 deterministic, 1 the DDPM posterior
    noise_level: Annotated[float, Field(ge=0)] = 0.7  # flow: the SDE's a, 0 for the ODE
    guidance: Annotated[float, Field(ge=0)] = (
        1.0  # classifier-free guidance in sampling and trajectories, 1 for none; Flux: the weight it is told
    )
    patch: Annotated[int, Field(ge=1)] = 1  # without an autoencoder: side of the pixel blocks that become channels
    shared_start: bool = False  # all candidates of a prompt start from the same noise
    resolution: Annotated[int, Field(ge=1)] | None = None  # side in pixels; the model's own where not given
    gradient_checkpointing: bool = False  # differentiable sampling recomputes each step in the backward pass
