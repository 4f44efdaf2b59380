"""Guard models behind rewards: how likely an answer is to be safe, from a classifier or from a language model.

A classifier has a label whose name is `safe`, or else one named `unsafe`. A language model reads prompt and answer
through its own chat template and says `safe` or `unsafe` next: only how likely it is to say either is looked at. An
answer beyond what the guard can read is cut at its end.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from stages.errors import UserError
from stages.policies.weights import check_weights
from stages.records import Prompt

MEND = "name a hub id that this machine can reach, or a local folder with safetensors weights"
LEADS = ("", "\n\n")  # what guards say before the verdict
ROOM = 32  # tokens for the verdict


@lru_cache(maxsize=2)
def guard_model(name: str, *, where: str) -> tuple[Any, Any]:
    """A guard, frozen, and its tokenizer.

    Raises:
        UserError: it cannot be had, or it is a classifier without a label `safe` or `unsafe`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    if Path(name).is_dir():
        check_weights(Path(name))
    try:
        made = AutoConfig.from_pretrained(name).architectures or [""]
        kind = AutoModelForSequenceClassification if _classifies(made[0]) else AutoModelForCausalLM
        model = kind.from_pretrained(name, dtype="auto", use_safetensors=True).eval().requires_grad_(False)
        words = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # offline, unknown, gated, another architecture: a dozen types
        raise UserError(
            f"'{name}' cannot be loaded as a guard ({type(error).__name__})", where=where, mend=MEND
        ) from error
    if _classifies(made[0]) and not {"safe", "unsafe"} & _labels(model).keys():
        what = f"'{name}' has the labels {', '.join(_labels(model))}"
        raise UserError(what, where=where, mend="name a guard with a label safe or unsafe")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), words


def safe(prompt: Prompt, text: str, name: str, *, where: str) -> float:
    """P(the answer is safe) in [0, 1].

    Raises:
        UserError: the guard cannot be had.
    """
    model, words = guard_model(name, where=where)
    asked = _by_label if _classifies(type(model).__name__) else _by_word
    with torch.no_grad():
        return asked(model, words, prompt, text)


def _classifies(architecture: str) -> bool:
    return architecture.endswith("ForSequenceClassification")


def _labels(model: Any) -> dict[str, int]:
    return {str(name).lower(): number for number, name in model.config.id2label.items()}


def _by_label(model: Any, words: Any, prompt: Prompt, text: str) -> float:
    """A classifier reads the last turn and the answer as a pair."""
    limit = getattr(model.config, "max_position_embeddings", None)
    read = words(prompt.messages[-1].content, text, truncation=limit is not None, max_length=limit, return_tensors="pt")
    taken = {key: read[key].to(model.device) for key in ("input_ids", "attention_mask")}
    shares = model(**taken).logits[0].float().softmax(-1)
    labels = _labels(model)
    return float(shares[labels["safe"]]) if "safe" in labels else 1 - float(shares[labels["unsafe"]])


def _by_word(model: Any, words: Any, prompt: Prompt, text: str) -> float:
    """P(safe) / (P(safe) + P(unsafe)), each summed over what may stand before the word."""
    head, limit = _asked(words, prompt, text), getattr(model.config, "max_position_embeddings", None)
    if limit and (beyond := len(head) + ROOM - limit) > 0:
        answer = words(text, add_special_tokens=False)["input_ids"]
        head = _asked(words, prompt, words.decode(answer[: max(0, len(answer) - beyond)]))
    told = [[_logp(model, words, head, lead + verdict) for lead in LEADS] for verdict in ("safe", "unsafe")]
    yes, no = (torch.stack(side).logsumexp(0) for side in told)
    return float(torch.sigmoid(yes - no))


def _asked(words: Any, prompt: Prompt, text: str) -> list[int]:
    """Tokens of the dialogue, up to where the verdict comes."""
    turns = [{"role": m.role, "content": m.content} for m in prompt.messages] + [{"role": "assistant", "content": text}]
    dialogue = words.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return words(dialogue, add_special_tokens=False)["input_ids"]


def _logp(model: Any, words: Any, head: list[int], verdict: str) -> torch.Tensor:
    """Log-prob of the model going on with a verdict."""
    tail = words(verdict, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([head + tail], device=model.device)
    logp = model(input_ids=ids).logits[0, len(head) - 1 : -1].float().log_softmax(-1)  # [t,v]
    return logp.gather(-1, ids[0, len(head) :, None]).sum()
