"""The text policy: any Hugging Face causal language model with a chat template, whole or as a PEFT adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Item, Steps
from stages.config import Config
from stages.policies.order import by_length
from stages.policies.text import attention, head, keywords, loading, plain, vllm
from stages.policies.text.check import agrees
from stages.policies.text.decoding import Asked, Growing, decode, rows_of, states_of
from stages.policies.text.packing import Packed, Row, pack
from stages.policies.text.pieces import pieces
from stages.records import Candidate, Completion, Message, Prompt

if TYPE_CHECKING:
    from stages.policies.family import Policy

Dialogue = Sequence[Message]
PRICED = 2048  # tokens of a batch that is priced without a gradient


class TextSettings(Config):
    """The node `run.policy` of the family `text`."""

    max_length: Annotated[int, Field(ge=8)] = 512  # tokens of prompt and completion together
    gradient_checkpointing: bool = False  # less memory in training for a fifth more time
    slots: Annotated[int, Field(ge=1)] = 64  # completions that are sampled side by side
    sampling: Literal["native", "vllm"] = "native"  # who samples; weights that are being trained always natively


class TextPolicy:
    """A causal language model that samples completions and prices them, a token a step."""

    family = "text"
    seeded = False

    def __init__(self, model: Any, tokenizer: Any, settings: TextSettings = TextSettings()) -> None:
        self.model, self.tokenizer, self.max_length, self.slots = model, tokenizer, settings.max_length, settings.slots
        self.device = next(model.parameters()).device
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._packs: bool | None = None  # not yet tried
        self.engine: vllm.Engine | None = None  # that samples in our stead
        attention.install(self.causal)

    # ---------------------------------------------------------------------------------------------- on disk

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: TextSettings = TextSettings(),
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        trainable: bool = False,
        lora_r: int = 0,
        seed: int = 0,
    ) -> TextPolicy:
        """Read a `save_pretrained` folder or a PEFT adapter folder (safetensors only, no remote code).

        An adapter is folded into the weights unless it is to be trained on.

        Args:
            folder: a model or an adapter; an adapter names its base model relative to the repository.
            settings: the length limit; a prompt that is too long gives way on its left.
            device: `cpu`, `cuda` or `mps`.
            dtype: of the weights.
            trainable: continue the adapter, or start one of rank `lora_r` on a whole model (0: train all weights).
            lora_r: rank of a new adapter.
            seed: of a new adapter's weights.

        Raises:
            UserError: no model there, weights in a pickle format, or a corrupt file.
        """
        model, tokenizer = loading.read(
            folder,
            device=device,
            dtype=dtype,
            trainable=trainable,
            lora_r=lora_r,
            seed=seed,
            gradient_checkpointing=settings.gradient_checkpointing,
        )
        made = cls(model, tokenizer, settings)
        if settings.sampling == "vllm" and not trainable:
            made.engine = vllm.Engine(folder, max_length=settings.max_length, dtype=dtype, slots=settings.slots)
        return made

    def save(self, folder: Path) -> None:
        """Write a `save_pretrained` folder: the adapter alone where there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, safe_serialization=True)
        if not (folder / "adapter_config.json").exists():
            self.tokenizer.save_pretrained(folder)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What an optimizer moves, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    # ---------------------------------------------------------------------------------------------- encoding

    def encode(self, messages: Dialogue, completion: Completion) -> tuple[list[int], list[int]]:
        """Token ids of the rendered dialogue and of the completion, end-of-sequence included where it finished."""
        return self._fit(self.encode_prompt(messages), completion)

    def rows(self, items: Sequence[Item]) -> list[Row]:
        """Token ids of prompt and answer of each item; a dialogue is rendered once for all its answers."""
        prompts = {messages: self.encode_prompt(messages) for messages in {item.messages for item in items}}
        return [self._fit(prompts[item.messages], item.completion) for item in items]

    def _fit(self, prompt: list[int], completion: Completion) -> tuple[list[int], list[int]]:
        answer = list(completion.tokens)
        if not answer:
            answer = self.tokenizer(completion.text, add_special_tokens=False)["input_ids"]
            answer += [self.tokenizer.eos_token_id] * completion.finished
        answer = answer[: self.max_length - 1]
        return prompt[-(self.max_length - len(answer)) :], answer

    def encode_prompt(self, messages: Dialogue) -> list[int]:
        """Token ids of the dialogue, ready for the assistant's turn."""
        turns = [message.model_dump() for message in messages]
        ids = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        return list(ids)

    # ---------------------------------------------------------------------------------------------- pricing

    def batches(self, items: Sequence[Item]) -> Iterator[list[int]]:
        """Indices of items that are priced together without a gradient: those of a dialogue, `PRICED` tokens or so."""
        dialogues: dict[tuple[Message, ...], list[int]] = {}
        for i, item in enumerate(items):
            dialogues.setdefault(item.messages, []).append(i)
        told = list(dialogues.values())
        sizes = [range(sum(items[i].size // 3 + 1 for i in each)) for each in told]  # about 3 characters a token
        for batch in by_length(sizes, tokens=PRICED):
            yield [i for dialogue in batch for i in told[dialogue]]

    def log_probs(
        self,
        items: Sequence[Item],
        *,
        entropy: bool = False,
        top_k: int = 0,
        hidden: bool = False,
        reference: Policy | None = None,
    ) -> Steps:
        """Log-prob of every token of each completion given its dialogue, float32, differentiable.

        Items of the same dialogue share its computation, wherever they stand (see `packing.py`).

        Returns:
            Steps with `logp`, `mask` and, if asked for, `entropy` and `ref`, all `[b,t]` in nats, left-aligned; with
            `top_k` also `top` `[b,t,k]`, and `hidden` `[b,t,d]`, differentiable, where it is asked for.
        """
        rows = self.rows(items)
        if self.packs():
            packed = pack(rows, self.device)
            states, made = self.hidden(packed), head.of(self.causal)
            told = head.log_probs(states, made, packed.targets, entropy=entropy, top_k=top_k)
            logp, mask = packed.unpack(told.logp)
            spread = None if told.entropy is None else packed.unpack(told.entropy)[0]
            top = None if told.top is None else torch.stack([packed.unpack(p)[0] for p in told.top.unbind(-1)], -1)
            steps = Steps(logp, mask, entropy=spread, top=top)
            if hidden:
                states = head.at_least_float(states)
                placed = states.new_zeros(*mask.shape, states.shape[-1]).masked_scatter(mask[..., None], states)
                steps = replace(steps, hidden=placed)
        else:
            steps = plain.log_probs(self.model, rows, self.pad, entropy=entropy, top_k=top_k, hidden=hidden)
        if reference is None:
            return steps
        with torch.no_grad():
            return replace(steps, ref=reference.log_probs(items).logp)

    def hidden(self, packed: Packed) -> Tensor:
        """Last hidden states `[n,d]` of the positions that predict the answers' tokens."""
        states = states_of(self.causal, packed.ids, packed.positions, packed.trees)
        return states.index_select(0, packed.source)

    def key_ranks(self, items: Sequence[Item]) -> list[list[float]]:
        """Of each token of each completion the rank of the key phrase that it is part of, see `keywords.ranks`."""
        answers = [self._fit([], item.completion)[1] for item in items]
        return [keywords.ranks(pieces(self.tokenizer, answer, special=False)) for answer in answers]

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """The text of each token of a completion, its end spelt out."""
        return pieces(self.tokenizer, tokens, special=True)

    @property
    def causal(self) -> Any:
        """The language model itself, which an adapter may be inside of."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def packs(self) -> bool:
        """Whether the model prices packed rows as it does padded ones: tried out once."""
        if self._packs is None:
            self._packs = agrees(self)
        return self._packs

    @torch.no_grad()
    def next_token_logits(self, prompts: Sequence[Prompt], words: Sequence[str]) -> Tensor:
        """Log-prob of the first token of each word as the assistant's next token: `[n, len(words)]`."""
        first = [self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        rows = [(self.encode_prompt(prompt.messages)[-self.max_length :], [first[0]]) for prompt in prompts]
        out = torch.empty(len(prompts), len(words))
        for batch in by_length([row for row, _ in rows], tokens=PRICED):
            chosen = [rows[i] for i in batch]
            if self.packs():
                logits = head.of(self.causal).logits(self.hidden(pack(chosen, self.device)))
            else:
                logits = plain.next_logits(self.model, [row for row, _ in chosen], self.pad)
            out[batch] = logits.log_softmax(-1)[:, first].cpu()
        return out

    # ---------------------------------------------------------------------------------------------- sampling

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Prompt],
        k: int,
        *,
        seed: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 64,
    ) -> list[Candidate]:
        """Draw k completions of each prompt, ordered by prompt then k.

        A prompt is prefilled once for its k rows, and rows that wait take the places of those that end (see
        `decoding.py`). Every row draws from its own seeded stream, so that it does not depend on what stands beside it.

        Returns:
            Candidates with `tokens` (end-of-sequence included) and `logps` under this policy at temperature 1.
        """
        room = max(1, self.max_length - max_new_tokens)
        asked = [self.encode_prompt(prompt.messages)[-room:] for prompt in prompts]
        names = [f"{prompt.id}/{i}" for prompt in prompts for i in range(k)]
        how = Asked(seed, temperature, top_p, max_new_tokens, frozenset(self.end_tokens().tolist()))
        rows = rows_of(names, k, seed)
        if self.engine is not None:
            self.engine.decode(asked, rows, names, how)
        elif self.packs():
            decode(self.causal, asked, rows, how, self.slots)
        else:
            plain.decode(self.model, asked, rows, how, self.slots, self.pad)
        return [self.candidate(name, prompts[row.prompt].id, row) for name, row in zip(names, rows, strict=True)]

    @property
    def chunk(self) -> int:
        """Rows worth asking for at once: enough that the last ones, which leave slots empty, are few of them."""
        return 4 * self.slots

    def end_tokens(self) -> Tensor:
        """Ids of all tokens that end a turn."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return torch.tensor(sorted({*ends, self.tokenizer.eos_token_id} - {None}), device=self.device)

    def candidate(self, name: str, prompt: str, row: Growing) -> Candidate:
        """What a row that has grown says."""
        finished = row.tokens[-1] in self.end_tokens().tolist()
        text = self.tokenizer.decode(row.tokens[: len(row.tokens) - finished], skip_special_tokens=True)
        return Candidate(
            id=name,
            prompt=prompt,
            text=text.strip(),
            finished=finished,
            tokens=tuple(row.tokens),
            logps=tuple(round(value, 6) for value in row.logps),
            entropy=None if row.entropy is None else round(row.entropy / len(row.tokens), 6),
        )
