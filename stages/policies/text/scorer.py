"""The reward model: any Hugging Face model under a head of one output or several, scores in units of its spread."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages import files
from stages.batches import Item
from stages.errors import UserError
from stages.policies.order import TIGHT, by_length, by_owner
from stages.policies.outputs import column
from stages.policies.text import attention, linear
from stages.policies.text.decoding import states_of
from stages.policies.text.packing import Row, pack
from stages.policies.text.policy import TextSettings
from stages.policies.weights import check_weights
from stages.records import Candidate, Completion, Prompt

if TYPE_CHECKING:
    from transformers import BatchEncoding

TOKENS = 4096  # of a pass
TOLERANCE = 1e-3  # between a packed score and a padded one, of the order of 1
ANY = 0  # stands for what follows an answer: nothing reads it


class Scorer:
    """Scores of an answer to a dialogue, read at the model's own classification position."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_length: int,
        mean: float = 0.0,
        std: float = 1.0,
        outputs: Sequence[str] = (),
    ) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, max_length
        self.mean, self.std, self.outputs = mean, std, tuple(outputs)
        self._packs: bool | None = None  # not yet tried
        linear.speed_up(model)
        if hasattr(model, "score"):  # a decoder, read at its last token
            attention.install(model)

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: TextSettings = TextSettings(),
        *,
        device: str = "cpu",
        trainable: bool = False,
        outputs: Sequence[str] = (),
    ) -> Scorer:
        """Read an encoder or a language model, or a trained scorer with its constants and outputs.

        To the former a new head is added, of these outputs or of one without a name.

        Raises:
            UserError: no model there, or a corrupt file.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        check_weights(folder)
        constants = folder / "score.json"
        held = json.loads(constants.read_text()) if constants.exists() else {"outputs": outputs}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=max(1, len(held.get("outputs", ()))), dtype=torch.float32, use_safetensors=True
            )
        except Exception as error:  # libraries raise a dozen types for a broken file
            what = f"cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            raise UserError(what, where=str(folder), mend="replace the files, or rerun the reward stage") from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        for module in model.modules():  # the same score with and without training: dropout off
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        limit = min(settings.max_length, int(model.config.max_position_embeddings))
        return cls(model.to(device).train(trainable), tokenizer, max_length=limit, **held)

    def save(self, folder: Path) -> None:
        """Write a `save_pretrained` folder with the constants that standardise its scores."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        constants = {"mean": self.mean, "std": self.std, "outputs": list(self.outputs)}
        files.write_json(folder / "score.json", constants)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What an optimizer moves, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def score(self, items: Sequence[Item]) -> Tensor:
        """Raw scores `[b,m]` of m outputs, differentiable; the question is cut before the answer is."""
        told = self.tokenizer(
            ["\n".join(message.content for message in item.messages) for item in items],
            [item.completion.text for item in items],
            truncation="longest_first",
            max_length=self.max_length,
        )
        return self.packed(told) if self.packs() else self.padded(told)

    def padded(self, told: BatchEncoding) -> Tensor:
        """Scores `[b,m]` of encoded rows, in passes over rows of nearly equal length."""
        ids = told["input_ids"]
        batches = list(by_length(ids, tokens=TOKENS, waste=TIGHT))
        scores = [self.together({name: [told[name][i] for i in batch] for name in told}) for batch in batches]
        order = torch.tensor([i for batch in batches for i in batch], device=self.model.device)
        return torch.cat(scores)[order.argsort()]

    def together(self, told: dict[str, list[list[int]]]) -> Tensor:
        """Scores `[b,m]` of encoded rows in one padded pass."""
        batch = self.tokenizer.pad(told, return_tensors="pt").to(self.model.device)
        return self.model(**batch).logits.float()

    def packed(self, told: BatchEncoding) -> Tensor:
        """Scores `[b,m]` of encoded rows in one pass without padding, a question once for all its answers."""
        rows = [split(ids, told.sequence_ids(i)) for i, ids in enumerate(told["input_ids"])]
        held = pack([(question, [*answer, ANY]) for question, answer in rows], self.model.device)
        last = held.source[held.lengths.cumsum(0) - 1]  # of each row the token before the added one
        states = states_of(self.model, held.ids, held.positions, held.trees)
        return self.model.score(states.index_select(0, last)).float()

    def packs(self) -> bool:
        """Whether the model is a decoder that scores packed rows as it does padded ones: tried out once."""
        if self._packs is None:
            self._packs = hasattr(self.model, "score") and self.tokenizer.is_fast and agrees(self)
        return self._packs

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Prompt], candidates: Sequence[Candidate], output: str = "") -> list[float]:
        """Scores of one output; where it learnt preferences, of mean 0 and spread 1 over what it was trained on.

        Raises:
            UserError: it has no such output.
        """
        at = column(self.outputs, output)
        items = [
            Item(c.id, p.messages, Completion.model_construct(text=c.text))
            for p, c in zip(prompts, candidates, strict=True)
        ]
        out = torch.empty(len(candidates))
        for batch in by_owner([item.messages for item in items], [item.size // 3 + 1 for item in items], tokens=TOKENS):
            out[batch] = self.score([items[i] for i in batch])[:, at].cpu()
        return ((out - self.mean) / self.std).tolist()


def split(ids: list[int], parts: list[int | None]) -> Row:
    """The tokens of a row up to its answer, and those of the answer; there is a token before it.

    >>> split([5, 6, 7], [0, 0, 1])
    ([5, 6], [7])
    """
    at = parts.index(1) if 1 in parts else len(ids)
    return ids[: max(1, at)], ids[max(1, at) :]


@torch.no_grad()
def agrees(scorer: Scorer) -> bool:
    """Whether packed and padded scores of a few rows are equal; one warning where they are not.

    See `check.py`: layers that carry a state along the sequence see the neighbours of a packed row.
    """
    told = scorer.tokenizer(["one two three", "one two three", "four"], ["five six", "seven", "eight nine ten"])
    try:
        gap = float((scorer.packed(told) - scorer.together(dict(told))).abs().max())
        what = f"scores differ by {gap:.2g}"
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        gap, what = float("inf"), f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    if gap <= TOLERANCE:  # not where it is NaN
        return True
    name = type(scorer.model).__name__
    warnings.warn(f"{name} cannot score packed rows ({what}): padded batches are used, more slowly", stacklevel=3)
    return False
