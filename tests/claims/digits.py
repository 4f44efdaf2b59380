"""The digits testbed: a small denoiser of scikit-learn's real 8x8 digits, prompts, and what its samples score.

A diffusion (`epsilon`) or flow-matching base is trained in half a minute; one that was trained is kept in the
temporary folder, under the code that trained it and torch's version, so that a second session starts at once.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.images import decode
from stages.label.rewards import brightness as bright
from stages.label.rewards import digit
from stages.policies.image import Policy, Settings
from stages.policies.image import noise as arithmetic
from stages.policies.image.schedule import Schedule
from stages.policies.image.tiny import scheduler
from stages.prepare.worlds import DIGITS
from stages.records import Candidate, Message, Prompt

NULL = 10  # the class that stands for no prompt
CLASSES = {f"a handwritten {word}": number for number, word in enumerate(DIGITS)} | {"": NULL}
SHAPE, STEPS, ROWS = (1, 8, 8), 4000, 128


class Block(nn.Module):
    """A residual layer that is scaled and shifted by what is known of the time and the class."""

    def __init__(self, width: int, known: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)
        self.film = nn.Linear(known, 2 * width)

    def forward(self, h: Tensor, known: Tensor) -> Tensor:
        scale, shift = self.film(F.silu(known)).chunk(2, 1)
        return h + self.out(F.silu(self.norm(h) * (1 + scale) + shift))


class Denoiser(nn.Module):
    """Noisy digits `[b,1,8,8]`, times in 0..1000 and class ids `[b]` to noise or velocity: 339,000 weights."""

    def __init__(self, width: int = 256, known: int = 64, waves: int = 32) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(64, width), nn.Linear(width, 64)
        self.blocks = nn.ModuleList(Block(width, known) for _ in range(3))
        self.classes = nn.Embedding(NULL + 1, known)
        self.time = nn.Sequential(nn.Linear(waves, known), nn.SiLU(), nn.Linear(known, known))
        pitch = torch.exp(-math.log(1e4) * torch.arange(waves // 2) / (waves // 2))
        self.register_buffer("pitch", pitch, persistent=False)

    def forward(self, x: Tensor, time: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        angle = time[:, None].float() * self.pitch
        known = self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.classes(encoder_hidden_states)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, known)
        return self.leave(h).view_as(x)


def classes(captions: Sequence[str]) -> Tensor:
    """Class ids `[n]` of captions: the policy's `embed`."""
    return torch.tensor([CLASSES[caption] for caption in captions])


def prompts(count: int = 10) -> list[Prompt]:
    """`count` prompts over the ten digits in turn."""
    return [
        Prompt(
            id=f"digit-{i}",
            messages=(Message(role="user", content=f"a handwritten {DIGITS[i % 10]}"),),
            answer=str(i % 10),
        )
        for i in range(count)
    ]


def policy(seed: int, prediction: str = "epsilon", *, kind: type[Policy] = Policy, **settings) -> Policy:
    """The base of a seed as a policy that learns, with settings of `run.policy`."""
    model = Denoiser()
    model.load_state_dict(base(seed, prediction))
    return kind(model, scheduler(prediction), settings=Settings(**settings), shape=SHAPE, embed=classes)


@lru_cache
def base(seed: int, prediction: str) -> dict[str, Tensor]:
    """Weights of the trained denoiser, from disk where another session left them."""
    code = "".join(map(inspect.getsource, (Block, Denoiser, train))) + f"{torch.__version__} {STEPS} {ROWS}"
    name = hashlib.blake2b(code.encode(), digest_size=8).hexdigest()
    kept = Path(tempfile.gettempdir()) / f"prefloop-digits-{name}" / f"{prediction}-{seed}.safetensors"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}")
        save_file(train(seed, prediction), part)
        os.replace(part, kept)
    return load_file(kept)


def train(seed: int, prediction: str) -> dict[str, Tensor]:
    """Pretrain by the denoising loss at the policy's own levels, the caption left out in a tenth of the rows.

    It is the loss that objective `nll` makes of the policy's log-probs, written out: pricing records one by one would
    take four times as long.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Denoiser()
        images, labels = (rows[: digit.TRAIN] for rows in digit.digits())
        levels = Schedule(scheduler(prediction))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for _ in range(STEPS):
            rows = torch.randint(len(images), (ROWS,))
            x0, noise = images[rows], torch.randn(ROWS, *SHAPE)
            said = torch.where(torch.rand(ROWS) < 0.1, NULL, labels[rows])
            time, _, (signal, sigma) = levels.draw(torch.rand(ROWS))
            level = arithmetic.over(signal, x0), arithmetic.over(sigma, x0)
            wanted = arithmetic.target(x0, noise, level, levels.prediction)
            loss = F.mse_loss(model(arithmetic.corrupt(x0, noise, level), time, said), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    return {name: weight.detach() for name, weight in model.state_dict().items()}


def look(policy: Policy, count: int = 500, **sampling) -> dict[str, float]:
    """What `count` samples score, always from the same noise; see `scores`."""
    asked = prompts(count)
    return scores(policy.sample(asked, 1, seed=987_654, **sampling), asked)


def scores(drawn: list[Candidate], asked: list[Prompt]) -> dict[str, float]:
    """Mean brightness, and of the classifier that no claim trains on: mean log-prob and share of the right class.

    The log-prob is `own`, the quality guard. It is the classifier of all training digits: those of one half of them
    call many a bright but plain digit unlikely.
    """
    by_id = {prompt.id: prompt for prompt in asked}
    owners = [by_id[candidate.prompt] for candidate in drawn]
    pixels = torch.stack([decode(candidate.image) for candidate in drawn])
    with torch.no_grad():
        own = digit.pixels(pixels, owners).clamp(min=-20)
        right = digit.classifier()(pixels).argmax(1) == classes([p.messages[-1].content for p in owners])
        light = bright.pixels(pixels, owners)
    return {"brightness": float(light.mean()), "own": float(own.mean()), "right": float(right.float().mean())}
