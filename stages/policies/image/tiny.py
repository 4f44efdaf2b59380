"""A real Stable Diffusion pipeline of any size, built in code: the image stages run on it without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("a", "an", "the", "of", "and", "with", "on", "in", "no", "photo", "picture", "image", "drawing"),
    *("handwritten", "digit", "digits", "number", "written", "by", "hand"),
    *("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "cyan"),
    *("circle", "square", "triangle", "cross", "star", "diamond", "ring", "bar", "rectangle", "heart", "shape"),
    *("circles", "squares", "triangles", "crosses", "stars", "diamonds", "rings", "bars", "rectangles", "hearts"),
    *("shapes", "small", "large", "big", "tiny", "dark", "bright", "light", "background"),
    *("left", "right", "above", "below", "to", "is", "are", "next", "top", "bottom", "side"),
)
END, UNKNOWN = "<end>", "<unknown>"


def word_tokenizer(words: Sequence[str] = WORDS, *, length: int = 16) -> Any:
    """A tokenizer of lower-case words that closes and pads each caption with one token, as CLIP's does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((END, UNKNOWN, *words)))}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    built.normalizer = normalizers.Lowercase()
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=built, eos_token=END, pad_token=END, unk_token=UNKNOWN, model_max_length=length
    )


def pipeline(
    folder: Path,
    *,
    size: int = 8,
    channels: int = 1,
    blocks: Sequence[int] = (16, 32),
    width: int = 32,
    layers: int = 1,
    words: Sequence[str] = WORDS,
    prediction_type: Literal["epsilon", "v_prediction", "sample", "flow"] = "epsilon",
    vae: Any = None,
    seed: int = 0,
) -> None:
    """Write an untrained Stable Diffusion pipeline.

    Without an autoencoder it works on pixels: `StableDiffusionPipeline.from_pretrained(folder, vae=None)` reads it,
    and `pipe(caption, height=8 * size, width=8 * size, output_type="latent")` gives pixels in [-1, 1].

    Args:
        folder: where to.
        size: side of the latents; without an autoencoder, of the pictures.
        channels: of the latents; without an autoencoder, of the pictures.
        blocks: channels of the UNet at each resolution, multiples of 8; all but the first attend to the caption.
        width: of the text encoder's hidden states, a multiple of 8.
        layers: residual layers of each block.
        words: what the tokenizer knows.
        prediction_type: what the UNet predicts.
        vae: an autoencoder; its latents must have `channels` channels.
        seed: of the weights.
    """
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    tokenizer = word_tokenizer(words)
    unet = UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=layers,
        block_out_channels=tuple(blocks),
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (len(blocks) - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (len(blocks) - 1) + ("UpBlock2D",),
        cross_attention_dim=width,
        norm_num_groups=8,
        attention_head_dim=4,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    made: Any = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(folder, safe_serialization=True)


def scheduler(prediction_type: str) -> Any:
    """Diffusers' scheduler of a prediction type; `pipe(...)` takes the policy's timesteps (flow: to 0.1%)."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    offset = 1  # matters to other spacings of the timesteps only; the pipeline insists on it
    if prediction_type == "flow":
        return (
            DPMSolverMultistepScheduler(  # of first order: the Euler step; FlowMatch... lacks what the pipeline calls
                solver_order=1,
                prediction_type="flow_prediction",
                use_flow_sigmas=True,
                flow_shift=1.0,
                steps_offset=offset,
            )
        )
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        steps_offset=offset,
    )
