"""Tiny real pipelines of every kind that an image policy can be, built in code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from stages.policies.image import tiny

WORDS = tiny.word_tokenizer()
WIDTHS = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(WORDS), "bos_token_id": None}
TOKENS = {"max_position_embeddings": WORDS.model_max_length, "eos_token_id": 0, "pad_token_id": 0}


def clip(width: int, *, projection: int | None = None) -> Any:
    """A text encoder, with its pooled output projected where that is asked for."""
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, projection_dim=projection or width, **WIDTHS, **TOKENS
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(WORDS), d_model=width, d_ff=2 * width, d_kv=8, num_layers=2, num_heads=4, pad_token_id=0
    )
    return T5EncoderModel(config).eval()


def autoencoder(channels: int, **config) -> Any:
    """Halves the side of colour pictures."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **config,
    )


def stable_diffusion() -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(4),
        text_encoder=clip(32),
        tokenizer=WORDS,
        unet=unet(cross_attention_dim=32),
        scheduler=tiny.scheduler("epsilon"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def xl() -> Any:
    """Two encoders side by side in the hidden states, the pooled output of the second and three sizes added to time."""
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(4),
        text_encoder=clip(16),
        text_encoder_2=clip(24, projection=20),
        tokenizer=WORDS,
        tokenizer_2=WORDS,
        unet=unet(
            cross_attention_dim=40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=20 + 6 * 8,
        ),
        scheduler=tiny.scheduler("epsilon"),
        add_watermarker=False,
    )


def sd3(*, largest: bool = True) -> Any:
    """Two CLIPs and, if it is there, a T5 one after another in the hidden states; a flow scheduler."""
    return diffusers.StableDiffusion3Pipeline(
        vae=autoencoder(4, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip(16, projection=16),
        text_encoder_2=clip(16, projection=16),
        text_encoder_3=t5(32) if largest else None,
        tokenizer=WORDS,
        tokenizer_2=WORDS,
        tokenizer_3=WORDS if largest else None,
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def pixart(**config) -> Any:
    """A T5 with its mask; half of what the denoiser gives is a variance."""
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=24,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        **{"sample_size": 8, **config},
    )
    return diffusers.PixArtAlphaPipeline(
        vae=autoencoder(4), text_encoder=t5(24), tokenizer=WORDS, transformer=model, scheduler=tiny.scheduler("epsilon")
    )


def flux(*, guided: bool = True) -> Any:
    """A pooled CLIP and a T5; 2 x 2 latents a token, a shift that depends on their number, the weight of guidance."""
    return diffusers.FluxPipeline(
        vae=autoencoder(4, scaling_factor=0.4, shift_factor=0.1),
        text_encoder=clip(16),
        text_encoder_2=t5(32),
        tokenizer=WORDS,
        tokenizer_2=WORDS,
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            guidance_embeds=guided,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )


def unconditional() -> Any:
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
    )
    return diffusers.DDIMPipeline(unet=model, scheduler=tiny.scheduler("epsilon"))


def unet(**config) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
        **config,
    )


KINDS: dict[str, Callable[[], Any]] = {
    "stable diffusion": stable_diffusion,
    "sdxl": xl,
    "sd3": sd3,
    "sd3 without t5": lambda: sd3(largest=False),
    "pixart": pixart,
    "pixart told sizes": lambda: pixart(sample_size=128, interpolation_scale=1, use_additional_conditions=True),
    "flux": flux,
    "flux without guidance": lambda: flux(guided=False),
    "unconditional": unconditional,
}


def written(kind: str, folder: Path) -> Path:
    """A folder with a pipeline whose every weight matters: layers that start at zero are drawn too."""
    torch.manual_seed(0)
    pipe = KINDS[kind]()
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            for weight in part.parameters():
                if not weight.any():
                    torch.nn.init.normal_(weight, std=0.2)
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
