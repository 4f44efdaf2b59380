import math
from pathlib import Path

import pytest
import torch

from stages.batches import Item, Singles, Steps
from stages.optimize.objectives.regression import regression
from stages.policies import tiny
from stages.policies.text import Scorer
from stages.records import Completion, Message
from stages.reward import ratings
from stages.reward.ratings import Rated
from tests.objectives.build import gradients, random_batch, values


def test_worked_numbers() -> None:
    """Scores 0.5 and 0.9 for ratings 1 and 0.5: the mean of 0.25 and 0.16; the first alone, 0.25; none, 0."""
    scores = torch.tensor([[0.5, 0.9]] * 3, dtype=torch.float64, requires_grad=True)
    there = torch.tensor([[True, True], [True, False], [False, False]])
    wanted = torch.tensor([[1.0, 0.5]] * 3, dtype=torch.float64)
    loss, stats = regression(Singles(Steps(scores, there, reward=wanted)))
    assert loss.tolist() == pytest.approx([0.205, 0.25, 0.0])
    assert stats["error"].tolist() == pytest.approx([0.45, 0.5, 0.0])
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [pytest.approx(row) for row in ([-0.5, 0.4], [-1.0, 0.0], [0.0, 0.0])]


def test_independent_reference() -> None:
    batch = random_batch("Singles", seed=4)
    assert batch.steps.reward is not None
    loss, gradient = gradients(regression, batch)
    for i, row in enumerate(values(batch.steps)):
        rated = batch.steps.reward[i][batch.steps.mask[i]].tolist()
        gaps = [score - rating for score, rating in zip(row, rated, strict=True)]
        assert loss[i].item() == pytest.approx(math.fsum(gap * gap for gap in gaps) / len(gaps))
        slopes = [2 * gap / len(gaps) / len(loss) for gap in gaps]
        assert gradient["steps"][i][batch.steps.mask[i]].tolist() == pytest.approx(slopes)


def told(text: str, **rated: float) -> Rated:
    return Rated(Item(text, (Message(role="user", content="Which?"),), Completion(text=text)), rated)


def test_an_aspect_that_nobody_rated_moves_no_output_of_its_own(tmp_path: Path) -> None:
    """A real head of two outputs, and answers that were rated in the first alone."""
    tiny.encoder(tmp_path)
    scorer = Scorer.load(tmp_path, trainable=True, outputs=("honesty", "detail"))
    batch = ratings.scored(scorer, [told("One.", honesty=1.0), told("Two.", honesty=0.25)])
    assert batch.steps.mask.tolist() == [[True, False]] * 2
    regression(batch)[0].sum().backward()
    slope = scorer.model.classifier.weight.grad
    assert slope[0].abs().sum() > 0
    assert not slope[1].any()


def test_a_head_of_two_outputs_learns_ratings_that_pull_apart(tmp_path: Path) -> None:
    """Long answers are detailed and short ones are not brief by accident: each output follows its own rating."""
    tiny.encoder(tmp_path)
    torch.manual_seed(0)
    scorer = Scorer.load(tmp_path, trainable=True, outputs=("detail", "brevity"))
    words = ["red ", "blue ", "green ", "small "]
    rated = [told(w * n + ".", detail=n / 8, brevity=1 - n / 8) for w in words for n in range(1, 8)]
    optimizer = torch.optim.Adam(scorer.parameters().values(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        regression(ratings.scored(scorer, rated[7:]))[0].mean().backward()
        optimizer.step()
    found = ratings.quality(scorer, rated[7:], rated[:7])
    assert found["answers"] == 28
    assert found["correlation/detail"] > 0.8
    assert found["correlation/brevity"] > 0.8
    assert found["error/detail"] < 0.2
    long, short = scorer.score([rated[6].item, rated[0].item]).tolist()
    assert long[0] > short[0]
    assert long[1] < short[1]
