"""Digit: log-probability that a small classifier gives the digit that was asked for."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from stages.errors import UserError
from stages.label.rewards._pixels import told
from stages.parts import part
from stages.records import Candidate, Prompt

TRAIN = 1500  # of the 1,797 digits; the rest are held out
PARTS = {"all": slice(0, TRAIN), "first": slice(0, TRAIN // 2), "second": slice(TRAIN // 2, TRAIN)}
STEPS, ROWS, NOISE = 600, 128, 0.3


@part(range=(-20.0, 0.0), families=("image",))
def digit(
    prompts: list[Prompt],
    candidates: list[Candidate],
    *,
    shift: Annotated[int, Field(ge=0, le=9)] = 0,
    half: Literal["all", "first", "second"] = "all",
) -> list[float | None]:
    """Log-probability of the prompt's digit under a classifier of scikit-learn's handwritten digits.

        r = max(log p(y + shift mod 10 | x), -20)

    The classifier (two convolutions, two linear layers) is trained when it is first asked, in a few seconds and always
    to the same weights, on noisy copies of 1,500 real digits, moved by up to a pixel. It reads 93 to 95% of the other
    297. An image of another size is averaged down to 8x8, a coloured one to grey.

    Args:
        prompts: `answer` is the digit, "0" to "9".
        candidates: images, white strokes on black.
        shift: asks for a later class: 1 wishes that an image of "3" be read as a 4, which only an adversary can do.
        half: training digits: "first" and "second" give two classifiers that share no example, one to label with and
            one to judge by.

    Returns:
        Nats in [-20, 0] each, None where there is no image or the prompt names no digit.

    Example: a held-out "7".

    >>> import sklearn.datasets
    >>> from stages.images import encode
    >>> seven = torch.tensor(sklearn.datasets.load_digits().images[1501] / 8 - 1)[None]
    >>> asked = Prompt(id="p", messages=({"role": "user", "content": "a handwritten seven"},), answer="7")
    >>> seen = Candidate(id="p/0", prompt="p", image=encode(seven))
    >>> digit([asked], [seen])[0] > -0.1 > -1 > digit([asked], [seen], shift=1)[0]
    True
    """
    classifier(half)
    able = [c if _digit(p) is not None else c.model_copy(update={"image": ""}) for p, c in zip(prompts, candidates)]
    return told(digit, partial(pixels, shift=shift, half=half), prompts, able)


def pixels(images: Tensor, prompts: list[Prompt], *, shift: int = 0, half: str = "all") -> Tensor:
    """The log-probabilities `[b]` of images `[b,c,h,w]`, differentiable and without the lower bound.

    Raises:
        UserError: a prompt that names no digit.
    """
    wanted = [_digit(prompt) for prompt in prompts]
    for prompt, one in zip(prompts, wanted):
        if one is None:
            what = f"answer {prompt.answer!r} is no digit"
            raise UserError(what, where=f"prompt {prompt.id}", mend="give an answer of '0' to '9'")
    classes = torch.tensor([(one + shift) % 10 for one in wanted if one is not None], device=images.device)  # [b]
    small = F.adaptive_avg_pool2d(images.float().clamp(-1, 1).mean(1, keepdim=True), 8)  # [b,1,8,8]
    logits = classifier(half).to(images.device)(small)  # [b,10]
    return logits.log_softmax(1).gather(1, classes[:, None]).squeeze(1)


def _digit(prompt: Prompt) -> int | None:
    """The digit that a prompt asks for."""
    answer = (prompt.answer or "").strip()
    return int(answer) if answer in set("0123456789") else None


@lru_cache
def classifier(half: str = "all") -> Any:
    """A frozen net `[b,1,8,8]` in [-1, 1] -> logits `[b,10]`, trained with its own random numbers."""
    images, labels = (rows[PARTS[half]] for rows in digits())
    random = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    for weight in net.parameters():  # torch's own start would depend on, and disturb, the global random state
        nn.init.zeros_(weight) if weight.dim() == 1 else nn.init.kaiming_normal_(weight, generator=random)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    with torch.enable_grad():  # it may be asked for where no gradient is wanted
        for _ in range(STEPS):
            rows = torch.randint(len(images), (ROWS,), generator=random)
            down, right = torch.randint(3, (2,), generator=random).tolist()
            moved = F.pad(images[rows], (1, 1, 1, 1), value=-1.0)[..., down : down + 8, right : right + 8]
            noise = torch.randn(ROWS, 1, 8, 8, generator=random) * NOISE
            loss = F.cross_entropy(net((moved + noise).clamp(-1, 1)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


@lru_cache
def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's handwritten digits: images `[1797,1,8,8]` in [-1, 1] and their classes `[1797]`."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(found.target)
