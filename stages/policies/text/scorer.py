"""The reward model: any Hugging Face model under a scalar head, scores in units of its own spread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages import files
from stages.batches import Item
from stages.errors import UserError
from stages.policies.order import by_length
from stages.policies.text.policy import TextSettings
from stages.policies.weights import check_weights
from stages.records import Candidate, Completion, Prompt


class Scorer:
    """A scalar score of an answer to a dialogue, read at the model's own classification position."""

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int, mean: float = 0.0, std: float = 1.0) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.mean, self.std = mean, std

    @classmethod
    def load(
        cls, folder: Path, settings: TextSettings = TextSettings(), *, device: str = "cpu", trainable: bool = False
    ) -> Scorer:
        """Read an encoder or a language model (a new head is added), or a trained scorer with its constants.

        Raises:
            UserError: no model there, or a corrupt file.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        check_weights(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, dtype=torch.float32, use_safetensors=True
            )
        except Exception as error:  # libraries raise a dozen types for a broken file
            what = f"cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            raise UserError(what, where=str(folder), mend="replace the files, or rerun the reward stage") from error
        model.config.pad_token_id = tokenizer.pad_token_id
        for module in model.modules():  # the same score with and without training: dropout off
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        constants = folder / "score.json"
        held = json.loads(constants.read_text()) if constants.exists() else {}
        limit = min(settings.max_length, int(model.config.max_position_embeddings))
        return cls(model.to(device).train(trainable), tokenizer, max_length=limit, **held)

    def save(self, folder: Path) -> None:
        """Write a `save_pretrained` folder with the constants that standardise its scores."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        files.write_json(folder / "score.json", {"mean": self.mean, "std": self.std})

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What an optimizer moves, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def score(self, items: Sequence[Item]) -> Tensor:
        """Raw scores `[b]`, differentiable; the question is cut before the answer is."""
        questions = ["\n".join(message.content for message in item.messages) for item in items]
        batch = self.tokenizer(
            questions,
            [item.completion.text for item in items],
            truncation="longest_first",
            max_length=self.max_length,
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        return self.model(**batch).logits.squeeze(-1).float()

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], candidates: Sequence[Candidate]) -> list[float]:
        """Standardised scores: mean 0 and spread 1 over the candidates of the policy it was trained on."""
        items = [
            Item(c.id, p.messages, Completion.model_construct(text=c.text))
            for p, c in zip(prompts, candidates, strict=True)
        ]
        out = torch.empty(len(candidates))
        for batch in by_length([range(item.size // 3 + 1) for item in items], tokens=4096):
            out[batch] = self.score([items[i] for i in batch]).cpu()
        return ((out - self.mean) / self.std).tolist()
