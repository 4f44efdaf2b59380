"""vLLM as the engine that samples: an extra for GPUs (`run.policy.sampling: vllm`), with the same rows as outcome.

Every row is a request with its own seed, so that it does not depend on the batch; prefix caching shares the keys of a
prompt among its rows. Log-probs are those before temperature and nucleus, as a candidate's are; entropy is not told.
The randomness is vLLM's: it draws other rows than native sampling does.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from stages.errors import UserError
from stages.policies.text.decoding import Asked, Growing
from stages.policies.text.drawing import digest


class Engine:
    """The model or adapter in a folder, read by vLLM when it first samples."""

    def __init__(self, folder: Path, *, max_length: int, dtype: torch.dtype, slots: int) -> None:
        """See that vLLM is there.

        Raises:
            UserError: it is not installed.
        """
        if importlib.util.find_spec("vllm") is None:
            mend = "pip install 'prefloop[vllm]', or choose native"
            raise UserError("vllm is not installed", where="params.yaml run.policy.sampling", mend=mend)
        self.folder = folder
        self.options = {
            "dtype": str(dtype).removeprefix("torch."),
            "max_model_len": max_length,
            "max_num_seqs": slots,
            "gpu_memory_utilization": 0.6,  # the rest is the policy's own, which prices
            "logprobs_mode": "raw_logprobs",
            "generation_config": "vllm",  # not the model's own top_k and penalties
        }

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model, and vLLM's request for the adapter where the folder holds one."""
        vllm, file = importlib.import_module("vllm"), self.folder / "adapter_config.json"
        if not file.exists():
            return vllm.LLM(model=str(self.folder), **self.options), None
        adapter = json.loads(file.read_text())
        rank = max(8, 1 << (adapter["r"] - 1).bit_length())  # vLLM knows powers of two
        options = {"model": adapter["base_model_name_or_path"], "enable_lora": True, "max_lora_rank": rank}
        lora = importlib.import_module("vllm.lora.request").LoRARequest("policy", 1, str(self.folder))
        return vllm.LLM(**options, **self.options), lora

    def decode(
        self, prompts: Sequence[Sequence[int]], rows: Sequence[Growing], names: Sequence[str], asked: Asked
    ) -> None:
        """Let every row grow to its end, see `decoding.decode`."""
        shared = {
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "max_tokens": asked.max_new_tokens,
            "stop_token_ids": sorted(asked.ends),
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        }
        params, (model, lora) = importlib.import_module("vllm").SamplingParams, self.loaded
        asks = [params(seed=digest(asked.seed, name), **shared) for name in names]
        given = [{"prompt_token_ids": list(prompts[row.prompt])} for row in rows]
        outputs = model.generate(given, asks, lora_request=lora, use_tqdm=False)
        for row, output in zip(rows, outputs, strict=True):
            fill(row, output.outputs[0])


def fill(row: Growing, output: Any) -> None:
    """What a row has become: tokens, the one that ended it included, and the log-prob of each."""
    row.tokens = list(output.token_ids)
    row.logps = [float(told[token].logprob) for token, told in zip(row.tokens, output.logprobs, strict=True)]
    row.entropy = None
