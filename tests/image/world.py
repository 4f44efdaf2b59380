"""Prompts, images and tiny real models that the tests of image rewards share."""

import atexit
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from stages.images import encode
from stages.label.rewards.digit import digits
from stages.records import Candidate, Message, Prompt
from stages.scenes.draw import render
from stages.scenes.words import Scene
from tests.image import models

MODELLED = ("clip_score", "pick_score", "hps", "aesthetic", "image_reward")


def prompt(caption: str = "a handwritten seven", name: str = "p", **fields) -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=caption),), **fields)


def candidate(image: Tensor | None, number: int = 0, *, of: str = "p") -> Candidate:
    return Candidate(id=f"{of}/{number}", prompt=of, image="" if image is None else encode(image))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def scene(*objects: dict, seed: int = 0) -> Tensor:
    return render(Scene(objects=objects), seed)


@cache
def batch() -> tuple[list[Prompt], list[Candidate]]:
    """Digits, scenes, noise and flat images of several sizes, each with a caption; the ninth is no image."""
    cross, square = {"shape": "cross", "color": "red"}, {"shape": "square", "color": "blue"}
    images = [
        *digits()[0][1500:1504],
        scene(cross),
        scene(cross, square),
        noise(3, 12, 20),
        torch.ones(3, 32, 32),
        None,
        -torch.ones(1, 8, 8),
        noise(3, 32, 32, seed=1),
    ]
    captions = ["a handwritten seven", "a red cross", "a blue square"]
    checks = {"objects": [cross]}
    prompts = [prompt(captions[i % 3], f"p{i}", answer=str(i % 10), checks=checks) for i in range(len(images))]
    return prompts, [candidate(image, i, of=f"p{i}") for i, image in enumerate(images)]


@cache
def folder() -> Path:
    """A folder with two tiny CLIPs, two tiny BLIPs and two heads, gone when the process ends."""
    held = TemporaryDirectory()
    atexit.register(held.cleanup)
    path = Path(held.name)
    for seed in (0, 1):
        models.clip(path / f"clip{seed}", seed=seed)
        models.blip(path / f"blip{seed}", seed=seed)
        models.head(path / f"head{seed}.safetensors", (models.CLIP_WIDTH, 8, 4, 1), seed=seed)
    return path


def models_of(name: str, seed: int = 0) -> dict[str, Any]:
    """Settings that give a reward its tiny models."""
    if name not in MODELLED:
        return {}
    clip, blip, head = (str(folder() / file) for file in (f"clip{seed}", f"blip{seed}", f"head{seed}.safetensors"))
    return {
        "clip_score": {"model": clip},
        "pick_score": {"model": clip, "tokenizer": clip},
        "hps": {"model": clip, "tokenizer": clip},
        "aesthetic": {"model": clip, "head": head},
        "image_reward": {"model": blip},
    }[name]
