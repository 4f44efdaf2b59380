"""The text policy: any Hugging Face causal language model with a chat template, whole or as a PEFT adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from stages.batches import Item, Steps
from stages.config import Config
from stages.errors import UserError
from stages.policies.order import by_length
from stages.policies.text import onednn
from stages.policies.text.drawing import draw, entropy_of, positions, stream
from stages.policies.text.rows import Rows
from stages.policies.weights import check_weights
from stages.records import Candidate, Completion, Message, Prompt

if TYPE_CHECKING:
    from stages.policies.family import Policy

Dialogue = Sequence[Message]
LORA_TARGETS = "all-linear"
PRICED = 2048  # tokens of a batch that is priced without a gradient


class TextSettings(Config):
    """The node `run.policy` of the family `text`."""

    max_length: Annotated[int, Field(ge=8)] = 512  # tokens of prompt and completion together


class TextPolicy:
    """A causal language model that samples completions and prices them, a token a step."""

    family = "text"
    seeded = False

    def __init__(self, model: Any, tokenizer: Any, settings: TextSettings = TextSettings()) -> None:
        self.model, self.tokenizer, self.max_length = model, tokenizer, settings.max_length
        self.device = next(model.parameters()).device
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

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
        from transformers import AutoModelForCausalLM, AutoTokenizer

        check_weights(folder)
        adapter = folder / "adapter_config.json"
        base = Path(json.loads(adapter.read_text())["base_model_name_or_path"]) if adapter.exists() else folder
        if base != folder:
            check_weights(base)
        try:
            tokenizer = AutoTokenizer.from_pretrained(base)
            model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, use_safetensors=True)
            if base != folder:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
                model = model if trainable and lora_r else model.merge_and_unload()
        except Exception as error:  # libraries raise a dozen types for a broken file
            what = f"cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
            raise UserError(
                what, where=str(folder), mend="replace the files, or rerun the stage that wrote them"
            ) from error
        if trainable and lora_r and base == folder:
            torch.manual_seed(seed)
            model = with_adapter(model, lora_r)
        model.to(device).train(trainable)
        if not trainable:
            model.requires_grad_(False)
        onednn.speed_up(model)
        return cls(model, tokenizer, settings)

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
        prompt = self.encode_prompt(messages)
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

    def _pad_left(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Right-align rows: token ids `[b,s]` and attention mask `[b,s]`."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(row)
            mask[i, width - len(row) :] = 1
        return ids.to(self.device), mask.to(self.device)

    # ---------------------------------------------------------------------------------------------- pricing

    def batches(self, items: Sequence[Item]) -> Iterator[list[int]]:
        """Indices of items of similar length, at most about `PRICED` tokens together."""
        yield from by_length([range(item.size // 3 + 1) for item in items], tokens=PRICED)  # 3 characters a token

    def log_probs(self, items: Sequence[Item], *, entropy: bool = False, reference: Policy | None = None) -> Steps:
        """Log-prob of every token of each completion given its dialogue, float32, differentiable.

        Rows are right-aligned, so that the logits of all completions are the last positions and no others are made.

        Returns:
            Steps with `logp`, `mask` and, if asked for, `entropy` and `ref`, all `[b,t]` in nats, left-aligned.
        """
        encoded = [self.encode(item.messages, item.completion) for item in items]
        ids, attention = self._pad_left([prompt + answer for prompt, answer in encoded])
        lengths = torch.tensor([len(answer) for _, answer in encoded], device=self.device)
        t = int(lengths.max())
        logits = (
            self.model(
                input_ids=ids,
                attention_mask=attention,
                position_ids=positions(attention),
                logits_to_keep=t + 1,
                use_cache=False,
            )
            .logits[:, :-1]
            .float()
        )  # [b,t,v]
        targets = ids[:, -t:]
        logz = logits.logsumexp(-1)
        logp = logits.gather(-1, targets[..., None]).squeeze(-1) - logz  # [b,t], right-aligned
        left = (torch.arange(t, device=self.device) + t - lengths[:, None]).clamp(
            max=t - 1
        )  # where row i's step j sits
        mask = torch.arange(t, device=self.device) < lengths[:, None]
        spread = None
        if entropy:
            spread = entropy_of(logits.detach()).gather(1, left) * mask
        with torch.no_grad():
            ref = None if reference is None else reference.log_probs(items).logp
        return Steps(logp=logp.gather(1, left) * mask, mask=mask, ref=ref, entropy=spread)

    @torch.no_grad()
    def next_token_logits(self, prompts: Sequence[Prompt], words: Sequence[str]) -> Tensor:
        """Log-prob of the first token of each word as the assistant's next token: `[n, len(words)]`."""
        first = [self.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
        out = torch.empty(len(prompts), len(words))
        rows = [self.encode_prompt(prompt.messages)[-self.max_length :] for prompt in prompts]
        for batch in by_length(rows, tokens=2048):
            ids, attention = self._pad_left([rows[i] for i in batch])
            logits = (
                self.model(
                    input_ids=ids,
                    attention_mask=attention,
                    position_ids=positions(attention),
                    logits_to_keep=1,
                    use_cache=False,
                )
                .logits[:, -1]
                .float()
            )
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

        A prompt is prefilled once for its k rows; rows that end leave the batch. Every row draws from its own seeded
        stream of uniform numbers, so that it does not depend on what else is in the batch.

        Returns:
            Candidates with `tokens` (end-of-sequence included) and `logps` under this policy at temperature 1.
        """
        room = self.max_length - max_new_tokens
        ids, attention = self._pad_left([self.encode_prompt(p.messages)[-room:] for p in prompts])
        names = [f"{p.id}/{i}" for p in prompts for i in range(k)]
        uniform = torch.stack([stream(seed, name, max_new_tokens) for name in names]).to(self.device)  # [n,t]
        tokens: list[list[int]] = [[] for _ in names]
        logps: list[list[float]] = [[] for _ in names]
        entropies = torch.zeros(len(names), device=self.device)
        ends = self.end_tokens()
        rows = Rows.prefill(self.model, ids, attention, k)
        for step in range(max_new_tokens):
            drawn = draw(rows.logits, uniform[rows.alive, step], temperature, top_p)  # [alive]
            logp = rows.logits.gather(-1, drawn[:, None]).squeeze(-1) - rows.logits.logsumexp(-1)
            entropies[rows.alive] += entropy_of(rows.logits)
            for row, token, value in zip(rows.alive.tolist(), drawn.tolist(), logp.tolist()):
                tokens[row].append(token)
                logps[row].append(value)
            keep = ~torch.isin(drawn, ends)
            if step + 1 == max_new_tokens or not keep.any():
                break
            rows.advance(self.model, drawn, keep)
        owners = [p.id for p in prompts for _ in range(k)]
        return [self._candidate(*row) for row in zip(names, owners, tokens, logps, entropies.tolist(), strict=True)]

    def end_tokens(self) -> Tensor:
        """Ids of all tokens that end a turn."""
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return torch.tensor(sorted({*ends, self.tokenizer.eos_token_id} - {None}), device=self.device)

    def _candidate(self, row: str, prompt: str, tokens: list[int], logps: list[float], entropy: float) -> Candidate:
        finished = tokens[-1] in self.end_tokens().tolist()
        text = self.tokenizer.decode(tokens[: len(tokens) - finished], skip_special_tokens=True)
        return Candidate(
            id=row,
            prompt=prompt,
            text=text.strip(),
            finished=finished,
            tokens=tuple(tokens),
            logps=tuple(round(value, 6) for value in logps),
            entropy=round(entropy / len(tokens), 6),
        )


def with_adapter(model: Any, rank: int) -> Any:
    """A new LoRA adapter on every linear layer but the head; alpha is twice the rank."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(model, config)
