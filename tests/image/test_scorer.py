"""The image reward model: learns, saves, and looks at picture and caption."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stages import images
from stages.batches import Item
from stages.errors import UserError
from stages.policies import tiny as text_tiny
from stages.policies.image import Scorer, tiny
from stages.records import Candidate, Completion, Message, Prompt


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("encoder")
    text_tiny.encoder(made)
    return made


def digits(count: int) -> tuple[torch.Tensor, list[str]]:
    """Real digits with their captions."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = torch.tensor(found.images[:count], dtype=torch.float32)[:, None] / 8 - 1
    names = tiny.WORDS[:10]
    return pixels, [f"a handwritten {names[label]}" for label in found.target[:count]]


def shown(pixels: torch.Tensor, caption: str) -> Item:
    return Item("x", (Message(role="user", content=caption),), Completion(image=images.encode(pixels)))


def scored(scorer: Scorer, pixels: torch.Tensor, captions: list[str]) -> torch.Tensor:
    return scorer.score([shown(*row) for row in zip(pixels, captions, strict=True)])[:, 0]


def test_a_scorer_learns_to_rank_brighter_digits_above_darker_ones(encoder, tmp_path):
    torch.manual_seed(0)
    scorer = Scorer.load(encoder, trainable=True)
    pixels, captions = digits(96)
    dark, bright = pixels * 0.9 - 0.1, pixels * 0.9 + 0.1
    optimizer = torch.optim.Adam(scorer.parameters().values(), lr=3e-3)
    for step in range(30):
        rows = [(32 * step + i) % 64 for i in range(32)]
        asked = [captions[i] for i in rows]
        margin = scored(scorer, bright[rows], asked) - scored(scorer, dark[rows], asked)
        optimizer.zero_grad()
        nn.functional.softplus(-margin).mean().backward()
        optimizer.step()
    with torch.no_grad():
        better = scored(scorer, bright[64:], captions[64:]) > scored(scorer, dark[64:], captions[64:])
        raw = scored(scorer, bright[64:], captions[64:])
    assert better.float().mean() > 0.9  # digits it was not shown
    scorer.mean, scorer.std = 0.5, 2.0
    scorer.save(tmp_path)
    again = Scorer.load(tmp_path)
    assert again.parameters() == {}
    prompts = [Prompt(id=f"p{i}", messages=(Message(role="user", content=c),)) for i, c in enumerate(captions[64:])]
    answers = [Candidate(id=f"{p.id}/0", prompt=p.id, image=images.encode(x)) for p, x in zip(prompts, bright[64:])]
    assert again(prompts, answers) == pytest.approx(((raw - 0.5) / 2).tolist(), abs=1e-5)


def test_the_caption_counts_and_neighbours_do_not(encoder):
    scorer = Scorer.load(encoder)
    pixels, captions = digits(3)
    large, colour = torch.randn(1, 100, 40).clamp(-1, 1), torch.randn(3, 8, 8).clamp(-1, 1)
    asked = [shown(pixels[0], captions[0]), shown(large, captions[1]), shown(pixels[0], captions[1])]
    asked.append(shown(colour, captions[2]))
    together = scorer.score(asked)
    assert together[0] != together[2]
    for i, one in enumerate(asked):
        torch.testing.assert_close(scorer.score([one])[0], together[i])
    assert scorer([], []) == []


def test_scores_have_a_gradient_in_the_pixels(encoder):
    pixels, captions = digits(2)
    scorer = Scorer.load(encoder)
    given = pixels.clone().requires_grad_()
    scorer.score_pixels(given, captions).sum().backward()
    assert (given.grad.flatten(1).abs().sum(1) > 0).all()


def test_scorers_start_from_the_seed_and_broken_ones_are_refused(encoder, tmp_path):
    torch.manual_seed(3)
    one = Scorer.load(encoder, trainable=True)
    torch.manual_seed(3)
    two = Scorer.load(encoder, trainable=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters().values(), two.parameters().values(), strict=True))
    one.save(tmp_path)
    (tmp_path / "scorer.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a safetensors file"):
        Scorer.load(tmp_path)
    with pytest.raises(UserError, match="holds no config.json"):
        Scorer.load(tmp_path / "nothing")


def test_several_outputs_are_kept_apart(encoder, tmp_path):
    scorer = Scorer.load(encoder, trainable=True, outputs=("bright", "round"))
    pixels, captions = digits(3)
    asked = [shown(*row) for row in zip(pixels, captions, strict=True)]
    assert scorer.score(asked).shape == (3, 2)
    scorer.score(asked)[:, 0].sum().backward()
    slope = scorer.net.judge[-1].weight.grad
    assert slope[0].any()
    assert not slope[1].any()
    scorer.save(tmp_path)
    again = Scorer.load(tmp_path)
    assert again.outputs == ("bright", "round")
    torch.testing.assert_close(again.score(asked), scorer.score(asked))
