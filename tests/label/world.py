"""Prompts, candidates and tiny real models that the tests of labelling share."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from stages.panel import Tools
from stages.policies import tiny
from stages.policies.encoder import Encoder
from stages.policies.text.policy import TextPolicy, TextSettings
from stages.policies.text.scorer import Scorer
from stages.records import Candidate, Completion, Message, Prompt

ASK = "Which is the largest city of France, Lyon or Paris?"
TEXTS = [
    "Paris is the largest city of France.",
    "I love Paris! The answer is Paris.",
    "which is the largest city of France",
    "- Paris\n- Lyon\n- Nice",
    "no no no no no no no no no no no no",
    '{"city": "Paris"}',
    "The answer is",
    "A city. A town. A village. It is a wonderful, happy and beautiful place, and it was said that Paris is large.",
    "",
    " \n",
    "巴黎是法国最大的城市。😀 naïve résumé",
    "word " * 20_000,
]


def prompt(name: str = "p", text: str = ASK, **fields) -> Prompt:
    return Prompt(id=name, messages=(Message(role="user", content=text),), **fields)


def candidate(text: str, number: int = 0, *, of: str = "p", score: float | None = None, **fields) -> Candidate:
    return Candidate(id=f"{of}/{number}", prompt=of, text=text, **{"finished": True, "score": score, **fields})


def batch() -> tuple[list[Prompt], list[Candidate]]:
    """Every text of TEXTS for a prompt on which every reward has something to say, the sixth cut off."""
    told = tuple(Completion(text=text, score=i / 10) for i, text in enumerate(TEXTS[:8]))
    wishes = {"sentences": 1, "must_include": ["paris"], "starts_with": "Paris"}
    asked = prompt(answer="Paris", reference=TEXTS[0], checks=wishes, given=told)
    return [asked] * len(TEXTS), [candidate(text, i, finished=i != 6) for i, text in enumerate(TEXTS)]


@cache
def rater() -> Scorer:
    """A tiny reward model of two ratings, untrained, that says about one half of everything."""
    with TemporaryDirectory() as name:
        tiny.encoder(Path(name))
        torch.manual_seed(0)
        scorer = Scorer.load(Path(name), outputs=("honesty", "detail"))
    scorer.model.classifier.bias.data.fill_(0.5)
    return scorer


@cache
def tools() -> Tools:
    """A tiny encoder, language model and reward model, all real."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        tiny.encoder(folder / "encoder")
        tiny.language_model(folder / "model")
        return Tools(
            encoder=Encoder.load(folder / "encoder"),
            policy=TextPolicy.load(folder / "model", TextSettings(max_length=2048)),
            scorer=Scorer.load(folder / "encoder"),
        )
