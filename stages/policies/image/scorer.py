"""The image reward model: a small convolutional net beside the caption's embedding, under a head."""

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
from stages.policies.outputs import column
from stages.records import Candidate, Completion, Prompt

WEIGHTS, CONSTANTS, ENCODER = "scorer.safetensors", "score.json", "encoder"
LARGEST = 64  # side in pixels; larger pictures are made smaller first
ROWS = 128  # pictures that are scored side by side


class Net(nn.Module):
    """Pixels and a caption's vector to a number for each output.

    What the picture shows (features averaged over a grid of 2 x 2, so that any size will do and left differs from
    right) is compared with what was asked by their product.
    """

    def __init__(self, embedding: int, outputs: int = 1, width: int = 64) -> None:
        super().__init__()
        self.look = nn.Sequential(
            *(nn.Conv2d(3, width // 4, 3, padding=1), nn.SiLU()),
            *(nn.Conv2d(width // 4, width // 2, 3, stride=2, padding=1), nn.SiLU()),
            *(nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.SiLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, width)),
        )
        self.ask = nn.Linear(embedding, width)
        self.judge = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, outputs))

    def forward(self, pixels: Tensor, caption: Tensor) -> Tensor:
        """Scores `[b,m]` of pictures `[b,3,h,w]` in [-1, 1] with captions `[b,d]`."""
        seen, asked = self.look(pixels), self.ask(caption)
        scores: Tensor = self.judge(torch.cat([seen, asked, seen * asked], 1))
        return scores


class Scorer:
    """Scores of a picture that answers a caption."""

    def __init__(
        self, net: Net, encoder: Encoder, *, mean: float = 0.0, std: float = 1.0, outputs: Sequence[str] = ()
    ) -> None:
        self.net, self.encoder, self.mean, self.std, self.outputs = net, encoder, mean, std, tuple(outputs)
        self.device = next(net.parameters()).device
        self.known: dict[str, Tensor] = {}  # captions

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: ImageSettings = ImageSettings(),
        *,
        device: str = "cpu",
        trainable: bool = False,
        outputs: Sequence[str] = (),
    ) -> Scorer:
        """Read a sentence encoder, or a trained scorer with its constants and outputs.

        To the former a new net is added, from torch's current seed, of these outputs or of one without a name.

        Raises:
            UserError: neither is there, or a corrupt file.
        """
        trained = (folder / CONSTANTS).exists()
        encoder = Encoder.load(folder / ENCODER if trained else folder, device=device)
        encoder.model.requires_grad_(False)
        held = json.loads((folder / CONSTANTS).read_text()) if trained else {"outputs": outputs}
        net = Net(int(encoder.model.config.hidden_size), max(1, len(held.get("outputs", ()))))
        if trained:
            weights, _ = files.load_tensors(folder / WEIGHTS)
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
        constants = {"mean": self.mean, "std": self.std, "outputs": list(self.outputs)}
        files.write_json(folder / CONSTANTS, constants)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer moves, by name."""
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    def score(self, items: Sequence[Item]) -> Tensor:
        """Raw scores `[b,m]` of m outputs, differentiable; pictures of one size go through the net together."""
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
        """Raw scores `[b,m]` of pixels `[b,c,h,w]` in [-1, 1], grey or colour, differentiable in them too."""
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
    def __call__(self, prompts: Sequence[Prompt], candidates: Sequence[Candidate], output: str = "") -> list[float]:
        """Scores of one output; where it learnt preferences, of mean 0 and spread 1 over what it was trained on.

        Raises:
            UserError: it has no such output.
        """
        at = column(self.outputs, output)
        items = [
            Item(c.id, p.messages, Completion.model_construct(image=c.image))
            for p, c in zip(prompts, candidates, strict=True)
        ]
        parts = [self.score(items[i : i + ROWS])[:, at].cpu() for i in range(0, len(items), ROWS)]
        out = torch.cat(parts) if parts else torch.zeros(0)
        return ((out - self.mean) / self.std).tolist()
