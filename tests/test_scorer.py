"""The reward model and the encoder on tiny real models: values do not depend on the batch, and come back as saved."""

from pathlib import Path

import pytest
import torch

from stages.policies import tiny
from stages.policies.encoder import Encoder
from stages.policies.text import Scorer
from stages.records import Candidate, Message, Prompt

BUILT = {"encoder": tiny.encoder, "language model": tiny.language_model}


@pytest.fixture(scope="module", params=list(BUILT))
def folder(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    BUILT[request.param](made)
    return made


def rows(texts: list[str]) -> tuple[list[Prompt], list[Candidate]]:
    prompts = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Ask {i}?"),)) for i in range(len(texts))]
    return prompts, [Candidate(id=f"p{i}/0", prompt=f"p{i}", text=t, finished=True) for i, t in enumerate(texts)]


def test_a_score_does_not_depend_on_padding(folder):
    torch.manual_seed(0)
    scorer = Scorer.load(folder)
    prompts, candidates = rows(["short", "a much longer answer " * 5, "middle sized one"])
    together = scorer(prompts, candidates)
    alone = [scorer([p], [c])[0] for p, c in zip(prompts, candidates, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 3


def test_it_comes_back_with_its_head_and_constants(folder, tmp_path):
    torch.manual_seed(0)
    scorer = Scorer.load(folder, trainable=True)
    scorer.mean, scorer.std = 0.3, 2.0
    scorer.save(tmp_path)
    prompts, candidates = rows(["one", "two"])
    torch.manual_seed(99)  # a fresh head would differ
    again = Scorer.load(tmp_path)
    assert (again.mean, again.std) == (0.3, 2.0)
    assert again(prompts, candidates) == pytest.approx(scorer(prompts, candidates), abs=1e-6)


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch(tmp_path):
    tiny.encoder(tmp_path)
    encoder = Encoder.load(tmp_path)
    texts = ["a cat", "a considerably longer sentence about a cat on a mat", "dog"]
    together = encoder.embed(texts)
    assert torch.allclose(together.norm(dim=-1), torch.ones(3), atol=1e-6)
    for i, one in enumerate(texts):
        assert torch.allclose(encoder.embed([one])[0], together[i], atol=1e-5)
    assert encoder.embed([]).shape == (0, 32)
