"""Diffusers pipeline folders: read, LoRA put on or folded in, written again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.errors import UserError
from stages.policies.image import conventions, lora
from stages.policies.image.codec import factor
from stages.policies.image.conventions import Convention

PICKLES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}


@dataclass
class Home:
    """A pipeline and its denoiser, which may carry an adapter."""

    pipe: Any
    name: str  # of the denoiser in the pipeline: unet or transformer
    model: Any
    convention: Convention

    @property
    def adapted(self) -> bool:
        """Whether the denoiser carries a LoRA adapter."""
        return hasattr(self.model, "peft_config")


def read(
    folder: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
    lora_r: int = 0,
    seed: int = 0,
) -> Home:
    """Read a pipeline (safetensors only, no remote code), or a LoRA folder on top of the pipeline it names.

    An adapter is folded into the weights unless it is to be trained on.

    Args:
        folder: a pipeline or an adapter; an adapter names its base relative to the repository.
        device: `cpu`, `cuda` or `mps`.
        dtype: of the weights.
        trainable: continue the adapter, or start one of rank `lora_r` on the denoiser of a pipeline; 0 trains all
            weights of the denoiser, and of the text encoder of a Stable Diffusion 1 or 2; the other pipelines' text
            encoders are large, and are frozen as every autoencoder is.
        lora_r: rank of a new adapter.
        seed: of a new adapter's weights.

    Raises:
        UserError: no pipeline there, one of an unknown kind, weights in a pickle format, or a corrupt file.
    """
    adapter = (folder / lora.WEIGHTS).exists()
    base = _base(folder) if adapter else folder
    check_pipeline(base)
    try:
        home = _read(base, dtype)
        if adapter:
            home.model = lora.read(home.model, folder)
            home.model = home.model if trainable and lora_r else home.model.merge_and_unload()
    except UserError:
        raise
    except Exception as error:  # libraries raise a dozen types for a broken file
        what = f"cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        mend = "replace the files, or rerun the stage that wrote them"
        raise UserError(what, where=str(folder), mend=mend) from error
    _set_training(home, whole=trainable and not lora_r)
    if trainable and lora_r and not adapter:
        torch.manual_seed(seed)
        home.model = lora.wrap(home.model, lora_r, base=str(base))
    elif trainable and lora_r:
        for name, parameter in home.model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    home.pipe.to(device)
    home.model.to(device)
    return home


def write(home: Home, folder: Path) -> None:
    """Write the adapter alone where there is one, else the whole pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    if home.adapted:
        lora.write(home.model, folder, prefix=home.name)
    else:
        home.pipe.save_pretrained(folder, safe_serialization=True)


def check_pipeline(folder: Path) -> None:
    """Refuse a folder that is no pipeline, or that holds weights which only a pickle could hold.

    Raises:
        UserError: naming the folder.
    """
    if not (folder / "model_index.json").exists():
        mend = "name a folder written by a diffusers pipeline's save_pretrained"
        raise UserError("holds no model_index.json", where=str(folder), mend=mend)
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        pickled = [f.name for f in part.iterdir() if f.suffix in PICKLES]
        if pickled and not list(part.glob("*.safetensors")):
            what = f"holds only pickled weights ({pickled[0]}), which are never loaded"
            raise UserError(what, where=str(part), mend="save the model as safetensors")


def latent_shape(
    model: nn.Module, vae: Any, resolution: int | None, patch: int = 1, packing: int = 1
) -> tuple[int, int, int]:
    """Shape `(c, h, w)` of what the denoiser works on, from its config or for pictures of that resolution.

    Raises:
        UserError: the config does not say, or the resolution does not fit the autoencoder and the denoiser's blocks.
    """
    config: Any = getattr(model, "config", {})
    side, channels = config.get("sample_size"), config.get("in_channels")
    if resolution is not None:
        block = factor(vae, patch) * packing
        if resolution % block:
            what, mend = f"{resolution} is no multiple of {block}", "choose one: the autoencoder halves the side"
            raise UserError(what, where="run.policy.resolution", mend=mend)
        side = resolution // factor(vae, patch)
    if side is None or channels is None:
        mend = "set run.policy.resolution"
        raise UserError("the denoiser's config gives no size of its images", where=type(model).__name__, mend=mend)
    height, width = (side, side) if isinstance(side, int) else side
    return int(channels) // packing**2, int(height), int(width)


def _read(base: Path, dtype: torch.dtype) -> Home:
    from diffusers import DiffusionPipeline

    index = json.loads((base / "model_index.json").read_text())
    convention = conventions.of_pipeline(str(index["_class_name"]), where=str(base))
    absent = {name: None for name, value in index.items() if value == [None, None]}  # must be said, or it is an error
    pipe = DiffusionPipeline.from_pretrained(base, dtype=dtype, use_safetensors=True, local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    name = "unet" if "unet" in pipe.components else "transformer"
    return Home(pipe, name, getattr(pipe, name), convention)


def _base(folder: Path) -> Path:
    """The pipeline that an adapter belongs to."""
    try:
        return Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        what = "an adapter without an adapter_config.json that names its base"
        raise UserError(what, where=str(folder), mend="rerun the stage that wrote it") from None


def _set_training(home: Home, *, whole: bool) -> None:
    """Freeze everything, or all but the denoiser and a text encoder of its kind; dropout is off in training too."""
    for part in (home.model, *home.pipe.components.values()):
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if whole:
        for part in (home.model, *([home.pipe.text_encoder] if home.convention.trains_text else [])):
            part.requires_grad_(True)
