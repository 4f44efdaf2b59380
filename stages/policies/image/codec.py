"""Pictures to what the denoiser works on, and back: through a frozen autoencoder where there is one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.images import decode as read
from stages.policies.image.memory import Memory


def fit(pixels: Tensor, channels: int, side: tuple[int, int]) -> Tensor:
    """A picture `[c,h,w]` with that many channels and that size: grey repeated, colour averaged, resized smoothly."""
    if len(pixels) != channels:
        pixels = pixels.expand(channels, -1, -1) if len(pixels) == 1 else pixels.mean(0, keepdim=True)
    if pixels.shape[1:] == side:
        return pixels
    return F.interpolate(pixels[None], side, mode="bilinear", antialias=True, align_corners=False)[0]


def factor(vae: Any, patch: int) -> int:
    """Side in pixels of what becomes one latent: of the autoencoder's, or else of a block of pixels."""
    return patch if vae is None else int(2 ** (len(vae.config.block_out_channels) - 1))


class Codec:
    """Between pixels in [-1, 1] and latents.

    Without an autoencoder they are the same, or blocks of `patch x patch` pixels become channels (pixel_unshuffle): a
    denoiser of a quarter of the side costs a sixteenth, and nothing is lost. Blocks are scaled by 1 / patch: the mean
    of a block is then as noisy as a pixel would be, so that what a picture shows is decided over all noise levels.

    An autoencoder gives the mode of its posterior, not a draw: a picture has one set of latents, which the policy and
    its reference share and which can be kept.
    """

    def __init__(
        self, vae: Any, shape: tuple[int, int, int], dtype: torch.dtype, device: Any, *, patch: int = 1
    ) -> None:
        """`shape` is that of the latents `[c,h,w]`."""
        self.vae, self.shape, self.dtype, self.device = vae, shape, dtype, device
        self.channels, self.scale, self.shift = shape[0] // patch**2, 1.0 / patch, 0.0
        self.factor = factor(vae, patch)
        if vae is not None:
            vae.requires_grad_(False).eval()
            if vae.dtype == torch.float16 and vae.config.get("force_upcast", False):
                vae.float()  # SDXL's overflows in half precision
            self.channels = int(vae.config.in_channels)
            self.scale = float(getattr(vae.config, "scaling_factor", 1.0))
            self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.side = (shape[1] * self.factor, shape[2] * self.factor)  # of the pictures
        self.known = Memory()  # by a digest of the picture

    @torch.no_grad()
    def encode(self, images: Sequence[str]) -> Tensor:
        """Latents `[n,c,h,w]` of pictures in base64; a picture is read and encoded once."""
        keys = [hashlib.blake2b(image.encode(), digest_size=16).hexdigest() for image in images]
        found = {key: self.known.get(key) or self._learn(key, image) for key, image in zip(keys, images, strict=True)}
        return torch.stack([found[key]["latents"] for key in keys]).to(self.device)

    def _learn(self, key: str, image: str) -> dict[str, Tensor]:
        """Encode a picture, alone: its numbers do not depend on the batch that it was first met in."""
        pixels = fit(read(image), self.channels, self.side)[None].to(self.device, self.dtype)
        return self.known.keep(key, {"latents": self._latents(pixels)[0]})

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
