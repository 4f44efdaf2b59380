"""Vision-language models behind rewards: CLIP, BLIP and the small heads on them, each loaded once, from safetensors.

A model is a hub id or a local folder as `save_pretrained` writes it. Images enter as `[b,c,h,w]` in [-1, 1] and stay
differentiable: they are resized and normalised by torch as CLIP's own image processor does on 8-bit pictures.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.errors import UserError
from stages.label.rewards._pixels import colour
from stages.policies.weights import check_weights

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, by channel, on pixels in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)
MEND = "name a hub id that this machine can reach, or a local folder with safetensors weights"


@lru_cache(maxsize=4)
def clip(name: str, *, where: str) -> Any:
    """A CLIP model, frozen.

    Raises:
        UserError: it cannot be had or lacks weights.
    """
    from transformers import CLIPModel

    return _load(CLIPModel, name, where, needed=("",))


@lru_cache(maxsize=2)
def blip(name: str, *, where: str) -> Any:
    """The image encoder and the image-grounded text encoder of a BLIP model, frozen.

    Raises:
        UserError: it cannot be had or lacks weights.
    """
    from transformers import BlipForImageTextRetrieval

    return _load(BlipForImageTextRetrieval, name, where, needed=("vision_model.", "text_encoder."))


@lru_cache(maxsize=8)
def tokenizer(name: str, *, where: str) -> Any:
    """A model's tokenizer.

    Raises:
        UserError: it cannot be had.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # offline, unknown, broken file: a dozen types
        what = f"the tokenizer of '{name}' cannot be had ({type(error).__name__})"
        raise UserError(what, where=where, mend=MEND) from error


def _load(kind: Any, name: str, where: str, *, needed: tuple[str, ...]) -> Any:
    """A model in evaluation mode; a weight under `needed` that the file lacks would be random, and is refused."""
    if Path(name).is_dir():
        check_weights(Path(name))
    try:
        model, info = kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # offline, unknown, gated, another architecture: a dozen types
        what = f"'{name}' cannot be loaded as a {kind.__name__} ({type(error).__name__})"
        raise UserError(what, where=where, mend=MEND) from error
    lost = sorted([*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])])
    lost = [key for key in lost if key.startswith(needed)]
    if lost:
        what = f"'{name}' lacks {len(lost)} weights of a {kind.__name__}, the first is {lost[0]}"
        raise UserError(what, where=where, mend=MEND)
    return model.eval().requires_grad_(False)


def looked_at(images: Tensor, size: int) -> Tensor:
    """Images as CLIP takes them, `[b,3,size,size]`: short side to `size` (bicubic), centre crop, normalised."""
    height, width = images.shape[-2:]
    short = min(height, width)
    to = [int(size * height / short), int(size * width / short)]
    grown = F.interpolate(colour(images), to, mode="bicubic", antialias=True).clamp(-1, 1)  # bicubic overshoots
    top, left = (to[0] - size) // 2, (to[1] - size) // 2
    cut = grown[..., top : top + size, left : left + size]
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (MEAN, STD))
    return ((cut + 1) / 2 - mean) / std


def embed_images(model: Any, images: Tensor) -> Tensor:
    """CLIP's unit embeddings of images `[b,d]`, differentiable."""
    seen = looked_at(images.float(), model.config.vision_config.image_size)
    return F.normalize(model.to(images.device).get_image_features(pixel_values=seen).pooler_output, dim=-1)


def embed_texts(model: Any, words: Any, texts: Sequence[str]) -> Tensor:
    """CLIP's unit embeddings of texts `[b,d]`; a text beyond its 77 tokens is cut, one said twice is read once."""
    once = list(dict.fromkeys(texts))
    limit = model.config.text_config.max_position_embeddings
    read = words(once, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(model.device)
    taken = {name: read[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        e = F.normalize(model.get_text_features(**taken).pooler_output, dim=-1)
    row = {text: i for i, text in enumerate(once)}
    return e[[row[text] for text in texts]]


def cosine(images: Tensor, texts: Sequence[str], model: str, words: str, *, where: str) -> Tensor:
    """Cosine `[b]` of each image's and its text's CLIP embedding, differentiable in the image.

    Raises:
        UserError: the model or the tokenizer (of the model `words`) cannot be had.
    """
    loaded, reader = clip(model, where=where), tokenizer(words or model, where=where)
    seen = embed_images(loaded, images)  # [b,d]
    return (seen * embed_texts(loaded, reader, texts)).sum(-1)


@lru_cache(maxsize=4)
def head(source: str, file: str = "model.safetensors", *, where: str) -> tuple[tuple[Tensor, Tensor], ...]:
    """The linear layers (weight, bias) of a small head, in order, ending in one number.

    Args:
        source: a safetensors file; or a folder or hub id that holds `file`.
        file: its name there. Layers are named `layers.<n>.weight` and `.bias`, whatever stands before; a single
            linear layer may be just `weight` and `bias`. Other tensors in the file are not read.
        where: the setting that named it.

    Raises:
        UserError: no such file, or layers that do not fit each other.
    """
    from safetensors import safe_open

    path = Path(source) / file if Path(source).is_dir() else Path(source)
    try:
        if not path.is_file():
            from huggingface_hub import hf_hub_download

            path = Path(hf_hub_download(source, file))
        with safe_open(path, "pt") as found:
            told = {name: found.get_tensor(key).float() for key in found.keys() if (name := _layer(key))}
    except Exception as error:  # no file, offline, not safetensors: a dozen types
        what = f"no head at '{source}' ({type(error).__name__})"
        raise UserError(what, where=where, mend=f"name a safetensors file, or a folder that holds {file}") from error
    numbers = sorted({number for number, _ in told})
    layers = tuple((told.get((n, "weight")), told.get((n, "bias"))) for n in numbers)
    if not _fits(layers):
        what = f"the tensors of '{source}' are no chain of linear layers that ends in one number"
        raise UserError(what, where=where, mend="give layers.<n>.weight [out,in] and layers.<n>.bias [out]")
    return layers  # type: ignore[return-value]


def _layer(key: str) -> tuple[int, str] | None:
    """Number and kind of a head's tensor, by its name."""
    match = re.fullmatch(r"(?:(?:.*\.)?layers\.(\d+)\.)?(weight|bias)", key)
    return (int(match[1] or 0), match[2]) if match else None


def _fits(layers: tuple[tuple[Tensor | None, Tensor | None], ...]) -> bool:
    """Whether each layer takes what the one before gives, and the last gives one number."""
    width = None
    for weight, bias in layers:
        if weight is None or bias is None or weight.dim() != 2 or bias.shape != weight.shape[:1]:
            return False
        if width not in (None, weight.shape[1]):
            return False
        width = weight.shape[0]
    return width == 1


def judged(features: Tensor, layers: tuple[tuple[Tensor, Tensor], ...], *, where: str) -> Tensor:
    """What a head says of features `[b,d]`: `[b]`. There is nothing between its layers: both published heads are so.

    Raises:
        UserError: a head for features of another width.
    """
    if layers[0][0].shape[1] != features.shape[1]:
        what = f"a head for {layers[0][0].shape[1]} features on a model that gives {features.shape[1]}"
        raise UserError(what, where=where, mend="use the head that was trained on this model")
    for weight, bias in layers:
        features = F.linear(features, weight.to(features.device), bias.to(features.device))
    return features.squeeze(-1)
