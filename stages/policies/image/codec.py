"""Pictures to what the denoiser works on, and back: through a frozen autoencoder where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.images import decode as read

REMEMBERED = 2**29  # bytes of encoded pictures that are kept


def fit(pixels: Tensor, channels: int, side: tuple[int, int]) -> Tensor:
    """A picture `[c,h,w]` with that many channels and that size: grey repeated, colour averaged, resized smoothly."""
    if len(pixels) != channels:
        pixels = pixels.expand(channels, -1, -1) if len(pixels) == 1 else pixels.mean(0, keepdim=True)
    if pixels.shape[1:] == side:
        return pixels
    return F.interpolate(pixels[None], side, mode="bilinear", antialias=True, align_corners=False)[0]


class Codec:
    """Between pixels in [-1, 1] and latents.

    Without an autoencoder they are the same, or blocks of `patch x patch` pixels become channels (pixel_unshuffle): a
    denoiser of a quarter of the side costs a sixteenth, and nothing is lost. Blocks are scaled by 1 / patch: the mean
    of a block is then as noisy as a pixel would be, so that what a picture shows is decided over all noise levels.
    """

    def __init__(
        self, vae: Any, shape: tuple[int, int, int], dtype: torch.dtype, device: Any, *, patch: int = 1
    ) -> None:
        """`shape` is that of the latents `[c,h,w]`."""
        self.vae, self.shape, self.dtype, self.device = vae, shape, dtype, device
        self.channels, self.factor, self.scale, self.shift = shape[0] // patch**2, patch, 1.0 / patch, 0.0
        if vae is not None:
            vae.requires_grad_(False).eval()
            self.channels = int(vae.config.in_channels)
            self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
            self.scale = float(getattr(vae.config, "scaling_factor", 1.0))
            self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.side = (shape[1] * self.factor, shape[2] * self.factor)  # of the pictures
        self.known: dict[str, Tensor] = {}
        self.room = REMEMBERED // (4 * shape[0] * shape[1] * shape[2])

    @torch.no_grad()
    def encode(self, images: Sequence[str]) -> Tensor:
        """Latents `[n,c,h,w]` of pictures in base64; a picture is read and encoded once."""
        unseen = [image for image in dict.fromkeys(images) if image not in self.known]
        found: dict[str, Tensor] = {}
        if unseen:
            pixels = torch.stack([fit(read(image), self.channels, self.side) for image in unseen])
            found = dict(zip(unseen, self._latents(pixels.to(self.device, self.dtype)), strict=True))
            if len(self.known) + len(found) <= self.room:
                self.known.update(found)
        return torch.stack([found[image] if image in found else self.known[image] for image in images])

    def _latents(self, pixels: Tensor) -> Tensor:
        if self.vae is None:
            return F.pixel_unshuffle(pixels, self.factor) * self.scale
        coded = self.vae.encode(pixels.to(self.vae.dtype))
        latents = coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latents
        return (latents.to(self.dtype) - self.shift) * self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels `[n,c,h,w]` of latents, differentiable, not clamped."""
        if self.vae is None:
            return F.pixel_shuffle(latents / self.scale, self.factor)
        return self.vae.decode((latents / self.scale + self.shift).to(self.vae.dtype)).sample.to(self.dtype)
