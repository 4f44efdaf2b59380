"""Ways to sample K answers of some prompts: ours, and both of transformers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from stages.policies.text.policy import TextPolicy, TextSettings
from stages.prepare import prompts as builtin
from stages.records import Prompt

TOP_P, TEMPERATURE = 0.95, 0.7
LONGEST, PAGE = 512, 256  # tokens of a prompt and its answer; of a page of transformers' cache


class Endless(TextPolicy):
    """A policy whose answers all reach the limit."""

    def end_tokens(self) -> torch.Tensor:
        """None."""
        return torch.empty(0, dtype=torch.long, device=self.device)


def asked(count: int) -> list[Prompt]:
    """Prompts of many kinds."""
    return builtin.builtin("train", count)


class Ours:
    """`policy.sample`."""

    def __init__(self, model: Path, endless: bool) -> None:
        self.policy = (Endless if endless else TextPolicy).load(model, TextSettings(max_length=LONGEST))

    def draw(self, prompts: list[Prompt], k: int, tokens: int, seed: int, *, greedy: bool = False) -> list[list[int]]:
        """Token ids of all answers."""
        cold = {"temperature": 0.0, "top_p": 1.0}
        how = cold if greedy else {"temperature": TEMPERATURE, "top_p": TOP_P}
        return [list(c.tokens) for c in self.policy.sample(prompts, k, seed=seed, max_new_tokens=tokens, **how)]


class Theirs:
    """`model.generate`, a padded batch of all rows."""

    def __init__(self, model: Path, endless: bool) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model, padding_side="left")
        self.endless = endless

    def config(self, k: int, tokens: int, greedy: bool) -> Any:
        """The same distribution as ours; 50 most likely tokens at most is transformers' default and switched off."""
        from transformers import GenerationConfig

        pad = self.tokenizer.pad_token_id
        facts: dict[str, Any] = {"max_new_tokens": tokens, "num_return_sequences": k, "top_k": 0}
        facts["pad_token_id"] = self.tokenizer.eos_token_id if pad is None else pad
        facts["eos_token_id"] = -1 if self.endless else self.tokenizer.eos_token_id
        how: dict[str, Any] = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P}
        return GenerationConfig(**facts, **({"do_sample": False} if greedy else how))

    def ids(self, prompts: list[Prompt]) -> list[list[int]]:
        """Token ids of the rendered prompts."""
        turns = [[message.model_dump() for message in prompt.messages] for prompt in prompts]
        made = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        return [list(row) for row in made]

    def draw(self, prompts: list[Prompt], k: int, tokens: int, seed: int, *, greedy: bool = False) -> list[list[int]]:
        """Token ids of all answers, their end included."""
        torch.manual_seed(seed)
        batch = self.tokenizer.pad({"input_ids": self.ids(prompts)}, return_tensors="pt")
        with torch.no_grad():
            out = self.model.generate(**batch, generation_config=self.config(k, tokens, greedy))
        return [self.cut(row) for row in out[:, batch["input_ids"].shape[1] :].tolist()]

    def cut(self, row: list[int]) -> list[int]:
        """An answer without what was padded behind its end."""
        end = self.tokenizer.eos_token_id
        return row[: row.index(end) + 1] if not self.endless and end in row else row


class Continuous(Theirs):
    """`model.generate_batch`: continuous batching over a paged cache, which is given the size that it needs.

    Left to itself it takes most of the free memory, and on a CPU minutes to do so.
    """

    def draw(self, prompts: list[Prompt], k: int, tokens: int, seed: int, *, greedy: bool = False) -> list[list[int]]:
        """Token ids of all answers."""
        from transformers import ContinuousBatchingConfig

        ids = self.ids(prompts)
        pages = -(-(max(map(len, ids)) + tokens) // PAGE)
        config = ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=(len(ids) * k + 1) * pages, max_batch_tokens=2048, seed=seed
        )
        out = self.model.generate_batch(
            ids, generation_config=self.config(k, tokens, greedy), continuous_batching_config=config
        )
        return [list(answer.generated_tokens) for answer in out.values()]


CONTENDERS: dict[str, Any] = {"prefloop": Ours, "generate": Theirs, "generate_batch": Continuous}
