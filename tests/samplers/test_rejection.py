"""Statistical rejection sampling: which draws are accepted, against the tilted distribution it stands for."""

import math
import random
from collections import Counter

import pytest
import torch

from stages.generate.samplers.rejection import accepted, rejection
from tests.contract.test_samplers import PROMPTS, Die, face_value

SCORES = [0.3, 0.9, 0.1, 0.7, 0.5]
NAMES = list("abcde")


def test_worked_numbers() -> None:
    """By hand with u = 0.844, 0.758, 0.421, 0.259, 0.511, ... of seed 0 and beta = 0.4.

    First pass, r_max 0.9: chances e^(-1.5) = 0.223, 1, e^(-2) = 0.135, e^(-0.5) = 0.607, e^(-1) = 0.368: the second
    and the fourth. Second pass, r_max 0.5, u = 0.405, 0.784, 0.303: chances 0.607, 0.368, 1: the first and the fifth.
    """
    assert accepted(SCORES, NAMES, 4, 0.4, random.Random(0)) == [1, 3, 0, 4]


def test_beta_from_the_best_to_the_first() -> None:
    for seed in range(10):
        assert sorted(accepted(SCORES, NAMES, 3, 0.0, random.Random(seed))) == [1, 3, 4]
        assert sorted(accepted(SCORES, NAMES, 3, 1e-4, random.Random(seed))) == [1, 3, 4]
        assert accepted(SCORES, NAMES, 3, math.inf, random.Random(seed)) == [0, 1, 2]


def test_a_constant_on_all_scores_changes_nothing() -> None:
    for seed in range(10):
        moved = [score + 4.0 for score in SCORES]
        there = accepted(moved, NAMES, 4, 0.4, random.Random(seed))
        assert accepted(SCORES, NAMES, 4, 0.4, random.Random(seed)) == there


def test_an_answer_said_twice_is_accepted_once_while_there_are_others() -> None:
    names = list("aabbc")
    for seed in range(10):
        three = accepted(SCORES, names, 3, 0.4, random.Random(seed))
        assert sorted(names[i] for i in three) == ["a", "b", "c"]
        four = accepted(SCORES, names, 4, 0.4, random.Random(seed))
        assert len(set(four)) == 4, "then a repetition fills up"


def test_the_first_accepted_follows_the_tilted_policy() -> None:
    """Whatever draws come before the best of 64: P(face) = p(face) * exp(r / beta) / Z."""
    p, beta = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64), 1.5
    faces = torch.multinomial(p, 4000 * 64, replacement=True, generator=torch.Generator().manual_seed(0)).view(4000, 64)
    rng, found = random.Random(0), Counter[int]()
    for row in faces.tolist():
        (first,) = accepted([float(face) for face in row], [str(face) for face in row], 1, beta, rng)
        found[row[first]] += 1
    exact = (p.log() + torch.arange(4.0) / beta).softmax(-1)
    assert [found[face] / 4000 for face in range(4)] == pytest.approx(exact.tolist(), abs=0.025)


def test_the_share_of_accepted_draws_is_the_mean_chance() -> None:
    """One pass over many draws that are all different: E[exp((r - r_max) / beta)] of them."""
    noise = random.Random(1)
    scores = [noise.random() for _ in range(4000)]
    chance = sum(math.exp((score - max(scores)) / 0.25) for score in scores) / 4000
    rng, first = random.Random(2), 0
    taken = accepted(scores, [str(i) for i in range(4000)], 2000, 0.25, rng)
    while first + 1 < len(taken) and taken[first] < taken[first + 1]:
        first += 1  # the first pass ends where the order begins again
    assert (first + 1) / 4000 == pytest.approx(chance, abs=0.02)


def test_it_takes_k_of_n_of_each_prompt_and_shuffles_them() -> None:
    die = Die(*[1.0] * 1000)
    found = rejection(die, PROMPTS, 4, 0, score=face_value, n=16, beta=0.0)
    drawn = die.sample(PROMPTS, 16, seed=0, temperature=0.7, top_p=1.0, max_new_tokens=64)
    for number, ask in enumerate(PROMPTS):
        own = [float(c.text) for c in drawn if c.prompt == ask.id]
        kept = [float(c.text) for c in found if c.prompt == ask.id]
        assert sorted(kept) == sorted(own)[-4:], number
    orders = [[c.text for c in rejection(die, PROMPTS, 4, s, score=face_value, n=16, beta=0.0)] for s in range(3)]
    assert any(row[:4] != sorted(row[:4], key=float, reverse=True) for row in orders)


def test_more_candidates_than_draws_draw_as_many() -> None:
    assert len(rejection(Die(1, 1, 1), PROMPTS, 5, 0, score=face_value, n=2)) == 15
