"""From noise to images, a denoising step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.policies.image import noise as arithmetic
from stages.policies.image import seeds
from stages.policies.image.schedule import Grid
from stages.records import Prompt

if TYPE_CHECKING:
    from stages.policies.image.policy import ImagePolicy

ROWS = 128  # images that are denoised side by side


@dataclass(frozen=True)
class Rollout:
    """`n` trajectories of T steps, ordered by prompt then k, without a gradient."""

    captions: tuple[str, ...]  # [n]
    pixels: Tensor  # [n,c,h,w] finished images in [-1, 1]
    latents: Tensor  # [n,T+1,c,h,w] from the first noise to the finished image
    logp: Tensor  # [n,T] log-prob of each step taken, mean over dims; 0 where the step is not random
    mask: Tensor  # [T] which steps are random
    grid: Grid

    def take(self, rows: Tensor) -> Rollout:
        """Some of the rows, by index `[m]`."""
        captions = tuple(self.captions[i] for i in rows.tolist())
        return replace(
            self, captions=captions, pixels=self.pixels[rows], latents=self.latents[rows], logp=self.logp[rows]
        )


@dataclass(frozen=True)
class Rows:
    """What is denoised side by side."""

    names: list[str]  # of each row's stream of noise
    starts: list[str]  # of the stream of its first noise
    captions: list[str]


def rows(prompts: Sequence[Prompt], k: int, seed: int, *, shared_start: bool) -> Rows:
    """K rows of each prompt; with `shared_start` they start from the same noise."""
    names = [f"{seed}:{prompt.id}/{i}" for prompt in prompts for i in range(k)]
    owners = [f"{seed}:{prompt.id}" for prompt in prompts for _ in range(k)]
    captions = [prompt.messages[-1].content for prompt in prompts for _ in range(k)]
    return Rows(names, [f"{name} start" for name in (owners if shared_start else names)], captions)


def chunks(asked: Rows) -> Iterator[Rows]:
    """At most `ROWS` rows at a time."""
    for at in range(0, len(asked.names), ROWS):
        part = slice(at, at + ROWS)
        yield Rows(asked.names[part], asked.starts[part], asked.captions[part])


def walk(
    policy: ImagePolicy, asked: Rows, grid: Grid, guidance: float, *, grad_steps: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Denoise, the last `grad_steps` steps with a gradient.

    Yields:
        The image after a step and the step's mean, `[n,c,h,w]`; first the noise, twice.
    """
    x = seeds.normals(asked.starts, policy.shape).to(policy.device, policy.dtype)
    z = None
    steps = len(grid.std)
    if grid.mask.any():
        z = seeds.normals(asked.names, (steps, *policy.shape)).to(x)  # [n,T,c,h,w]
    with torch.set_grad_enabled(grad_steps > 0):
        condition = policy.denoiser.condition(asked.captions, guidance)
    yield x, x
    for i in range(steps):
        with torch.set_grad_enabled(i >= steps - grad_steps):
            x = mean = grid.mean(x, policy.denoiser(x, grid.time[i].expand(len(x)), condition, guidance), i)
            if z is not None:
                x = mean + grid.std[i] * z[:, i]
        yield x, mean


@torch.no_grad()
def rollout(policy: ImagePolicy, asked: Rows, grid: Grid, guidance: float) -> Rollout:
    """Denoise rows and keep every step with its log-prob."""
    paths, logps, pixels = [], [], []
    for part in chunks(asked):
        images, means = zip(*walk(policy, part, grid, guidance), strict=True)
        taken = zip(images[1:], means[1:], grid.std, strict=True)
        logps.append(torch.stack([arithmetic.gaussian_logp(x, mean, std) for x, mean, std in taken], 1))
        paths.append(torch.stack(images, 1))
        pixels.append(policy.codec.decode(images[-1]).clamp(-1, 1))
    latents, logp = torch.cat(paths), torch.cat(logps)
    return Rollout(tuple(asked.captions), torch.cat(pixels), latents, logp, grid.mask, grid)


@torch.no_grad()
def finish(policy: ImagePolicy, asked: Rows, grid: Grid, guidance: float) -> Tensor:
    """Denoise rows and keep the finished images alone: pixels `[n,c,h,w]` in [-1, 1]."""
    found = []
    for part in chunks(asked):
        for x, _ in walk(policy, part, grid, guidance):
            last = x
        found.append(policy.codec.decode(last).clamp(-1, 1))
    return torch.cat(found)


def renoised(policy: ImagePolicy, x0: Tensor, asked: Rows, grid: Grid, guidance: float, repeats: int) -> Tensor:
    """Latents of the last step alone, taken with a gradient from `repeats` fresh noisings of finished ones (DRaFT-LV).

    Returns:
        `[repeats * n, c, h, w]`, all rows of the first noising first.
    """
    names = [f"{name} again {i}" for i in range(repeats) for name in asked.names]
    noise = seeds.normals(names, policy.shape).to(x0)
    x = arithmetic.corrupt(x0.repeat(repeats, 1, 1, 1), noise, grid.start)
    condition = policy.denoiser.condition(asked.captions * repeats, guidance)
    last = len(grid.std) - 1
    return grid.mean(x, policy.denoiser(x, grid.time[last].expand(len(x)), condition, guidance), last)
