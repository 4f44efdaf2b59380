"""Arithmetic of noising and denoising, for diffusion (`epsilon`, `v_prediction`, `sample`) and rectified flow (`flow`).

A noise level is a pair (signal, sigma): a noisy image is `signal * x0 + sigma * noise`. Diffusion has
`signal = sqrt(ab)`, `sigma = sqrt(1 - ab)` with `ab` the cumulative product of 1 - beta; flow has `signal = 1 - s`,
`sigma = s`. Levels are numbers, 0-dim tensors or tensors `[b,1,...]` that broadcast over images `[b,...]`.
Everything here is pure and keeps the number format it is given.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow")
Level = tuple[Tensor, Tensor]  # (signal, sigma)


def over(values: Tensor, images: Tensor) -> Tensor:
    """One value an image, shaped to broadcast: `[b] -> [b,1,...]`; a 0-dim tensor is left alone.

    >>> over(torch.ones(2), torch.ones(2, 1, 8, 8)).shape
    torch.Size([2, 1, 1, 1])
    """
    return values if values.dim() == 0 else values.view(-1, *[1] * (images.dim() - 1))


def corrupt(x0: Tensor, noise: Tensor, level: Level) -> Tensor:
    """The forward process: a clean image at a noise level."""
    signal, sigma = level
    return signal * x0 + sigma * noise


def target(x0: Tensor, noise: Tensor, level: Level, prediction: str) -> Tensor:
    """What the model should say of a noisy image."""
    signal, sigma = level
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    return signal * noise - sigma * x0 if prediction == "v_prediction" else noise - x0


def clean(x: Tensor, out: Tensor, level: Level, prediction: str) -> Tensor:
    """The clean image that the model's output implies."""
    signal, sigma = level
    if prediction == "epsilon":
        return (x - sigma * out) / signal
    if prediction == "sample":
        return out
    return signal * x - sigma * out if prediction == "v_prediction" else x - sigma * out


def residual(x: Tensor, out: Tensor, level: Level, prediction: str) -> Tensor:
    """The noise that the model's output implies."""
    signal, sigma = level
    if prediction == "epsilon":
        return out
    if prediction == "sample":
        return (x - signal * out) / sigma
    return sigma * x + signal * out if prediction == "v_prediction" else x + signal * out


def ddim_step(x: Tensor, out: Tensor, now: Level, then: Level, eta: float, prediction: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the DDIM step between two diffusion levels; eta = 1 is the DDPM posterior.

        std  = eta * sigma'/sigma * sqrt(1 - ab/ab')
        mean = signal' * x0 + sqrt(sigma'^2 - std^2) * eps

    A step to the clean image (sigma' = 0) has no spread.
    """
    kept = (now[0] / then[0]) ** 2  # ab/ab'
    std = eta * then[1] / now[1] * (1 - kept).clamp(min=0).sqrt()
    straight = (then[1] ** 2 - std**2).clamp(min=0).sqrt()
    return then[0] * clean(x, out, now, prediction) + straight * residual(x, out, now, prediction), std


def flow_spread(s: Tensor, level: float, first: Tensor) -> Tensor:
    """Diffusion coefficient `level * sqrt(s / (1 - s))` of the flow SDE, with s replaced by `first` in 1 - s at s = 1.

    Args:
        s: noise fraction in (0, 1].
        level: the card's a; 0 is the ODE.
        first: the second value of the schedule, which keeps the first step finite.
    """
    return level * (s / (1 - torch.where(s < 1, s, first))).sqrt()


def flow_step(x: Tensor, v: Tensor, s: Tensor, then: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of an Euler-Maruyama step of the SDE with the flow's marginals, from s to then < s.

        mean = x + (v + spread^2 / (2s) * (x + (1-s) v)) ds        std = spread * sqrt(-ds)

    With spread 0 this is the Euler step of the ODE.
    """
    ds = then - s
    return x + (v + spread**2 / (2 * s) * (x + (1 - s) * v)) * ds, spread * (-ds).sqrt()


def gaussian_logp(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of N(mean, std) at x, the MEAN over dims, in nats: `[b,...] -> [b]`; 0 where std is 0.

    The log-density of the whole image is this times its number of dims. `x` gets no gradient: it is the step taken.

    >>> gaussian_logp(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([1.0]))
    tensor([-0.9189])
    """
    real = std > 0
    safe = torch.where(real, std, torch.ones_like(std))
    squared = ((x.detach() - mean) / over(safe, mean)).square().flatten(1).mean(1)
    return torch.where(real, -0.5 * squared - safe.log() - 0.5 * math.log(2 * math.pi), 0.0)


def gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy of a Gaussian a dim, in nats; std must be above 0."""
    return std.log() + 0.5 * math.log(2 * math.pi * math.e)


def gaussian_kl(mean: Tensor, other: Tensor, std: Tensor) -> Tensor:
    """Exact KL of two Gaussians with the same std, the MEAN over dims: `[b,...] -> [b]`; 0 where std is 0."""
    safe = torch.where(std > 0, std, torch.ones_like(std))
    return torch.where(std > 0, ((mean - other) / over(safe, mean)).square().flatten(1).mean(1) / 2, 0.0)


def weighted(error: Tensor, s: Tensor, weight: str) -> Tensor:
    """The surrogate log-prob of a mean squared error m at noise fraction s.

    `half` is -m/2 (Diffusion-DPO). The others are -W of Advantage Weighted Matching: `uniform` m, `t` s m,
    `t2` s^2 m, `huber` s (sqrt(m + 1e-10) - 1e-5), `ghuber` s ((m + 1e-10)^p - 1e-10^p) / p with p = 1/4.

    >>> weighted(torch.tensor(0.25), torch.tensor(0.5), "half")
    tensor(-0.1250)
    """
    if weight == "half":
        return -0.5 * error
    if weight == "huber":
        return -s * ((error + 1e-10).sqrt() - 1e-5)
    if weight == "ghuber":
        return -s * ((error + 1e-10) ** 0.25 - 1e-10**0.25) / 0.25
    return -error * {"uniform": torch.ones_like(s), "t": s, "t2": s**2}[weight]


def diffusion_grid(steps: int, trained: int = 1000) -> Tensor:
    """Timesteps of T inference steps, `i * trained/T - 1` for i = T..1 (diffusers' trailing spacing).

    >>> diffusion_grid(4).tolist()
    [999, 749, 499, 249]
    """
    return (torch.arange(steps, 0, -1, dtype=torch.float64) * trained / steps).round().long() - 1


def flow_grid(steps: int, shift: float = 1.0) -> Tensor:
    """Noise fractions of T inference steps, T + 1 values from 1 to 0, shifted as the scheduler says.

    >>> flow_grid(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    s = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * s / (1 + (shift - 1) * s)
