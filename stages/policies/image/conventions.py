"""How each kind of diffusers pipeline reads captions and calls its denoiser."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.errors import UserError

Condition = dict[str, Tensor]  # what a denoiser is told of captions: `[n, ...]` each, named as its arguments are
Call = Callable[[Any, Tensor, Tensor, Condition, tuple[int, int]], Any]
WORDS = "encoder_hidden_states"


@dataclass(frozen=True)
class Convention:
    """One kind of pipeline."""

    call: Call  # the denoiser, noisy latents `[n,c,h,w]`, times `[n]`, condition, sides of the picture -> its output
    reads: tuple[str, ...] = ()  # names of what encode_prompt returns, in its order; "" for what is left out
    packing: int = 1  # side of the blocks of latents that are one token's channels
    trains_text: bool = False  # training all weights trains the text encoder too


def by_place(model: Any, x: Tensor, time: Tensor, said: Condition, side: tuple[int, int]) -> Any:
    """A UNet: image and time come first."""
    return model(x, time, **said)


def by_name(model: Any, x: Tensor, time: Tensor, said: Condition, side: tuple[int, int]) -> Any:
    """A transformer: everything has a name."""
    return model(hidden_states=x, timestep=time, **said)


def xl(model: Any, x: Tensor, time: Tensor, said: Condition, side: tuple[int, int]) -> Any:
    """SDXL: the pooled caption, and the size of a picture that was never cropped."""
    sizes = torch.tensor([*side, 0, 0, *side], dtype=x.dtype, device=x.device).expand(len(x), -1)
    return model(x, time, said[WORDS], added_cond_kwargs={"text_embeds": said["text_embeds"], "time_ids": sizes})


def pixart(model: Any, x: Tensor, time: Tensor, said: Condition, side: tuple[int, int]) -> Any:
    """PixArt: the mask of the caption's padding; the models for 1024 pixels are told the picture's size."""
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        told = torch.tensor([*side, side[0] / side[1]], dtype=x.dtype, device=x.device).expand(len(x), -1)
        added = {"resolution": told[:, :2], "aspect_ratio": told[:, 2:]}
    return model(x, timestep=time, added_cond_kwargs=added, **said)


def flux(model: Any, x: Tensor, time: Tensor, said: Condition, side: tuple[int, int]) -> Tensor:
    """Flux: blocks of 2 x 2 latents are tokens that bear their place, and time runs from 0 to 1."""
    tokens = F.pixel_unshuffle(x, 2)  # [n,4c,h/2,w/2]
    rows, columns = tokens.shape[2:]
    place = torch.cartesian_prod(*(torch.arange(length) for length in (1, rows, columns))).to(x)  # [hw/4,3]
    out = model(
        hidden_states=tokens.flatten(2).mT,
        timestep=time.to(x.dtype) / 1000,
        img_ids=place,
        txt_ids=torch.zeros(said[WORDS].shape[1], 3).to(x),
        return_dict=False,
        **said,
    )[0]
    return F.pixel_shuffle(out.mT.unflatten(2, (rows, columns)), 2)


PIPELINES = {
    "DDPMPipeline": Convention(by_place),
    "DDIMPipeline": Convention(by_place),
    "StableDiffusionPipeline": Convention(by_place, (WORDS,), trains_text=True),
    "StableDiffusionXLPipeline": Convention(xl, (WORDS, "", "text_embeds")),
    "StableDiffusion3Pipeline": Convention(by_name, (WORDS, "", "pooled_projections")),
    "PixArtAlphaPipeline": Convention(pixart, (WORDS, "encoder_attention_mask")),
    "PixArtSigmaPipeline": Convention(pixart, (WORDS, "encoder_attention_mask")),
    "FluxPipeline": Convention(flux, (WORDS, "pooled_projections"), packing=2),
}


def of_pipeline(name: str, *, where: str) -> Convention:
    """The convention of a pipeline's class.

    Raises:
        UserError: nobody has written down how that class calls its denoiser.
    """
    if name not in PIPELINES:
        mend = f"use one of {', '.join(known.removesuffix('Pipeline') for known in PIPELINES)}"
        raise UserError(f"a {name} is not supported", where=where, mend=mend)
    return PIPELINES[name]


def of_model(model: Any) -> Convention:
    """The convention of a denoiser without a pipeline, by its signature."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model  # its signature, not the adapter's
    known = inspect.signature(inner.forward).parameters
    return Convention(by_name if "hidden_states" in known and "timestep" in known else by_place, (WORDS,))


class PromptEmbed(nn.Module):
    """What a pipeline's own `encode_prompt` makes of captions, by the names of the denoiser's arguments."""

    def __init__(self, pipe: Any, reads: Sequence[str]) -> None:
        super().__init__()
        self.pipe, self.reads = pipe, reads
        for name, part in pipe.components.items():
            if name.startswith("text_encoder") and part is not None:
                self.add_module(name, part)

    def forward(self, captions: Sequence[str]) -> Condition:
        """Conditions `[n, ...]`; of the empty caption what the pipeline takes where no negative prompt is given."""
        if not self.reads:
            return {}
        asked = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False, "prompt_2": None, "prompt_3": None}
        known = inspect.signature(self.pipe.encode_prompt).parameters
        given = {name: value for name, value in asked.items() if name in known}
        found = self.pipe.encode_prompt(prompt=list(captions), device=self.pipe.device, **given)
        said = {name: value for name, value in zip(self.reads, found) if name}
        if not self.pipe.config.get("force_zeros_for_empty_prompt", False):
            return said
        some = torch.tensor([caption != "" for caption in captions], device=self.pipe.device)
        return {name: value * some.view(-1, *[1] * (value.ndim - 1)) for name, value in said.items()}


def shift(scheduler: Any, model: Any, shape: tuple[int, int, int], packing: int) -> float | None:
    """How a flow scheduler shifts the noise levels of latents of that shape; None if it does so at any size alike."""
    config: Mapping[str, Any] = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return None
    tokens = shape[1] * shape[2] / (packing * model.config.get("patch_size", 1)) ** 2
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    mu = base + (most - base) * (tokens - low) / (high - low)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)
