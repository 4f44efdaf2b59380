"""A diffusers scheduler's noise levels, and the denoising steps between them as three numbers each.

A step is linear in the noisy image and in the model's output: `mean = keep * x + move * out`, with spread `std`. The
numbers are made in float64 by evaluating the step's formula at the two unit vectors, so that no step divides by the
tiny signal of the first levels in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stages.errors import UserError
from stages.policies.image import noise as arithmetic
from stages.policies.image.noise import Level


@dataclass(frozen=True)
class Grid:
    """T denoising steps, first to last."""

    time: Tensor  # [T] what the model is told of the level before the step
    keep: Tensor  # [T]
    move: Tensor  # [T]
    std: Tensor  # [T]
    start: Level  # level before the last step: from here one step finishes the image

    @property
    def mask(self) -> Tensor:
        """Steps `[T]` that are random, and so have a log-prob."""
        return self.std > 0

    def mean(self, x: Tensor, out: Tensor, step: Tensor | int) -> Tensor:
        """Mean of a step, or of each row's step `[b]`, from the noisy images and the model's output `[b,...]`."""
        return arithmetic.over(self.keep[step], x) * x + arithmetic.over(self.move[step], x) * out


class Schedule:
    """The noise levels that a model was trained at."""

    def __init__(self, scheduler: Any, *, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> None:
        """Read a diffusers scheduler.

        Raises:
            UserError: the model predicts something else than noise, v, the clean image or velocity.
        """
        self.dtype, self.device = dtype, device
        config = scheduler.config
        said = config.get("prediction_type", "")
        self.flow = type(scheduler).__name__.startswith("FlowMatch") or said == "flow_prediction"
        self.prediction = "flow" if self.flow else said
        if self.prediction not in arithmetic.PREDICTIONS:
            mend = "use a model that predicts epsilon, v_prediction, sample or flow"
            raise UserError(f"prediction_type {said!r} is not supported", where=type(scheduler).__name__, mend=mend)
        self.trained = int(config.get("num_train_timesteps", 1000))
        self.shift = float(config.get("shift") or config.get("flow_shift") or 1.0) if self.flow else 1.0
        self.alphas = torch.ones(0) if self.flow else scheduler.alphas_cumprod.detach().cpu().double()

    def draw(self, where: Tensor) -> tuple[Tensor, Tensor, Level]:
        """Training levels at quantiles `where` `[n]` in (0, 1): uniform timesteps, or logit-normal s of at least 0.01.

        Returns:
            What the model is told `[n]`, the noise fraction `[n]` in (0, 1], and the level `[n]`.
        """
        if self.flow:
            s = torch.special.ndtri(where.double().clamp(1e-6, 1 - 1e-6)).sigmoid().clamp(min=0.01)
            time, level = s * self.trained, (1 - s, s)
        else:
            timestep = (where.double() * self.trained).long().clamp(max=self.trained - 1)
            s, time, level = (timestep + 1) / self.trained, timestep, self._level(self.alphas[timestep])
        return self._time(time), self._here(s), (self._here(level[0]), self._here(level[1]))

    def grid(self, steps: int, noise: float) -> Grid:
        """The steps of a sample.

        Args:
            steps: how many.
            noise: eta of DDIM, or the noise level of the flow SDE; 0 is deterministic. The last step always is.
        """
        x, out = torch.eye(2, dtype=torch.float64)[:, :, None].unbind()  # [2,1] each: the two unit vectors
        if self.flow:
            s = arithmetic.flow_grid(steps, self.shift)
            spread = torch.where(s[1:] > 0, arithmetic.flow_spread(s[:-1], noise, s[1]), 0.0)
            mean, std = arithmetic.flow_step(x, out, s[:-1], s[1:], spread)
            time, start = s[:-1] * self.trained, (1 - s[-2], s[-2])
        else:
            time = arithmetic.diffusion_grid(steps, self.trained)
            ab = torch.cat([self.alphas[time], torch.ones(1, dtype=torch.float64)])
            levels = self._level(ab[:-1]), self._level(ab[1:])
            mean, std = arithmetic.ddim_step(x, out, *levels, noise, self.prediction)
            start = (levels[0][0][-1], levels[0][1][-1])
        keep, move = self._here(mean)  # [2,T]
        return Grid(self._time(time), keep, move, self._here(std), (self._here(start[0]), self._here(start[1])))

    def _level(self, ab: Tensor) -> Level:
        return ab.sqrt(), (1 - ab).sqrt()

    def _here(self, values: Tensor) -> Tensor:
        return values.to(self.dtype).to(self.device)  # MPS knows no float64

    def _time(self, values: Tensor) -> Tensor:
        return self._here(values) if self.flow else values.to(self.device)
