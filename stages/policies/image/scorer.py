"""The image reward model: a small convolutional net beside the caption's embedding, under a scalar head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages import files
from stages.batches import Item
from stages.errors import UserError
from stages.images import decode
from stages.policies.encoder import Encoder
from stages.policies.image.codec import fit
from stages.policies.image.settings import ImageSettings
from stages.records import Candidate, Completion, Prompt

WEIGHTS, CONSTANTS, ENCODER = "scorer.safetensors", "score.json", "encoder"
LARGEST = 64  # side in pixels; larger pictures are made smaller first
ROWS = 128  # pictures that are scored side by side


class Net(nn.Module):
    """Pixels and a caption's vector to a scalar.

    What the picture shows (features averaged over a grid of 2 x 2, so that any size will do and left differs from
    right) is compared with what was asked by their product.
    """

    def __init__(self, embedding: int, width: int = 64) -> None:
        super().__init__()
        self.look = nn.Sequential(
            *(nn.Conv2d(3, width // 4, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1), nn.SiLU()),
            *(nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.SiLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, width)),
        )
        self.ask = nn.Linear(embedding, width)
        self.judge = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, pixels: Tensor, caption: Tensor) -> Tensor:
        """Scores `[b]` of pictures `[b,3,h,w]` in [-1, 1] with captions `[b,d]`."""
        seen, asked = self.look(pixels), self.ask(caption)
        return self.judge(torch.cat([seen, asked, seen * asked], 1)).squeeze(1)


class Scorer:
    """A scalar score of a picture that answers a caption."""

    def __init__(self, net: Net, encoder: Encoder, *, mean: float = 0.0, std: float = 1.0) -> None:
        self.net, self.encoder, self.mean, self.std = net, encoder, mean, std
        self.device = next(net.parameters()).device
        self.known: dict[str, Tensor] = {}  # captions

    @classmethod
    def load(
        cls, folder: Path, settings: ImageSettings = ImageSettings(), *, device: str = "cpu", trainable: bool = False
    ) -> Scorer:
        """Read a sentence encoder (a new net is added, from torch's current seed), or a trained scorer.

        Raises:
            UserError: neither is there, or a corrupt file.
        """
        trained = (folder / CONSTANTS).exists()
        encoder = Encoder.load(folder / ENCODER if trained else folder, device=device)
        encoder.model.requires_grad_(False)
        net, held = Net(int(encoder.model.config.hidden_size)), {}
        if trained:
            weights, _ = files.load_tensors(folder / WEIGHTS)
            held = json.loads((folder / CONSTANTS).read_text())
            try:
                net.load_state_dict(weights)
            except RuntimeError as error:
                what, mend = f"weights of another model: {str(error).splitlines()[0]}", "rerun the reward stage"
                raise UserError(what, where=str(folder / WEIGHTS), mend=mend) from error
        net.to(device).requires_grad_(trainable)
        return cls(net, encoder, **held)

    def save(self, folder: Path) -> None:
        """Write the net, the constants that standardise its scores, and a copy of its sentence encoder."""
        folder.mkdir(parents=True, exist_ok=True)
        files.save_tensors(folder / WEIGHTS, self.net.state_dict(), {})
        self.encoder.model.save_pretrained(folder / ENCODER, safe_serialization=True)
        self.encoder.tokenizer.save_pretrained(folder / ENCODER)
        files.write_json(folder / CONSTANTS, {"mean": self.mean, "std": self.std})

    def parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer moves, by name."""
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    def score(self, items: Sequence[Item]) -> Tensor:
        """Raw scores `[b]`, differentiable; pictures of one size go through the net together."""
        pictures = [decode(item.completion.image) for item in items]
        by_size: dict[torch.Size, list[int]] = {}
        for i, picture in enumerate(pictures):
            by_size.setdefault(picture.shape[1:], []).append(i)
        scores = []
        for (height, width), group in by_size.items():
            same = torch.stack([fit(pictures[i], 3, (height, width)) for i in group])
            scores.append(self.score_pixels(same, [items[i].messages[-1].content for i in group]))
        order = torch.tensor([i for group in by_size.values() for i in group], device=self.device)
        return torch.cat(scores)[order.argsort()]

    def score_pixels(self, pixels: Tensor, captions: Sequence[str]) -> Tensor:
        """Raw scores `[b]` of pixels `[b,c,h,w]` in [-1, 1], grey or colour, differentiable in them too."""
        pixels = pixels.to(self.device, torch.float32).expand(-1, 3, -1, -1)
        largest = max(pixels.shape[2:])
        if largest > LARGEST:
            side = tuple(max(1, round(length * LARGEST / largest)) for length in pixels.shape[2:])
            pixels = F.interpolate(pixels, side, mode="bilinear", antialias=True)
        return self.net(pixels, self._captions(captions))

    def _captions(self, captions: Sequence[str]) -> Tensor:
        """Vectors `[b,d]`; a caption is encoded once."""
        unseen = [caption for caption in dict.fromkeys(captions) if caption not in self.known]
        if unseen:
            self.known.update(zip(unseen, self.encoder.embed(unseen).to(self.device), strict=True))
        return torch.stack([self.known[caption] for caption in captions])

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], candidates: Sequence[Candidate]) -> list[float]:
        """Standardised scores: mean 0 and spread 1 over the candidates of the policy it was trained on."""
        items = [
            Item(c.id, p.messages, Completion.model_construct(image=c.image))
            for p, c in zip(prompts, candidates, strict=True)
        ]
        parts = [self.score(items[at : at + ROWS]).cpu() for at in range(0, len(items), ROWS)]
        out = torch.cat(parts) if parts else torch.zeros(0)
        return ((out - self.mean) / self.std).tolist()
