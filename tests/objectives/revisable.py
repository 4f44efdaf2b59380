"""Generators and improvers that are tables, on problems whose preferences are known: for SRPO's tests and claims."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages import parts
from stages.batches import Pairs, Revisions, Steps


@dataclass(frozen=True)
class Game:
    """`n` problems of one prompt with `a` arms each; the reference is uniform."""

    prefers: Tensor  # [n,a,a] P(first beats second)
    weight: Tensor  # [n,m] of every pair of arms, first below second; each row sums to 1


def game(prefers: Tensor, drawn: Tensor) -> Game:
    """Preferences `[n,a,a]`, and the arms' probabilities `[n,a]` of whoever drew the pairs: two different ones."""
    first, second = torch.triu_indices(drawn.shape[-1], drawn.shape[-1], 1)
    weight = drawn[:, first] * drawn[:, second]
    return Game(prefers, weight / weight.sum(-1, keepdim=True))


def beats(utility: Tensor, cycle: float = 0.0) -> Tensor:
    """P(i beats j) = sigmoid(2 (u_i - u_j)) of utilities `[...,a]`, which Bradley and Terry explain.

    With a `cycle`, which nothing explains: so much more for who comes one or two places before, cut to [0.02, 0.98].
    """
    a = utility.shape[-1]
    ahead = (torch.arange(a)[None, :] - torch.arange(a)[:, None]) % a
    turn = torch.where(ahead == 0, 0.0, torch.where(ahead <= a // 2, cycle, -cycle)).double()
    made = torch.sigmoid(2 * (utility[..., :, None] - utility[..., None, :])) + turn
    return torch.where(ahead == 0, 0.5, made.clamp(0.02, 0.98) if cycle else made)


def optimum(prefers: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The closed forms, log-probs of the generator `[...,a]` and the improver `[...,previous,a]`."""
    scaled = prefers.transpose(-1, -2) / beta  # [previous, next]: P(next beats previous)
    return (-scaled.logsumexp(-1)).log_softmax(-1), scaled.log_softmax(-1)


def _steps(logp: Tensor) -> Steps:
    """Log-ratios to the uniform reference stand in for log-probs: arms as answers of one step."""
    return Steps(logp.reshape(-1, 1), torch.ones(logp.numel(), 1, dtype=torch.bool), ref=torch.zeros(logp.numel(), 1))


def pairs(game: Game, generator: Tensor) -> Pairs:
    """All pairs of arms with their exact probability, for log-probs `[n,a]` of a policy."""
    a = generator.shape[-1]
    first, second = torch.triu_indices(a, a, 1)
    h = generator + torch.log(torch.tensor(float(a)))
    return Pairs(_steps(h[:, first]), _steps(h[:, second]), prob=game.prefers[:, first, second].reshape(-1))


def revisions(game: Game, generator: Tensor, improver: Tensor) -> Revisions:
    """The same with what either arm is revised into, for log-probs `[n,previous,a]` of an improver."""
    a = generator.shape[-1]
    first, second = torch.triu_indices(a, a, 1)
    h = improver + torch.log(torch.tensor(float(a)))
    given = (Pairs(_steps(h[:, previous, first]), _steps(h[:, previous, second])) for previous in (first, second))
    return Revisions(pairs(game, generator), *given)


def loss(game: Game, objective: str, generator: Tensor, improver: Tensor, **settings: float) -> Tensor:
    """The mean loss of each problem `[n]`, of an objective on revisions or on pairs."""
    part = parts.find("objective", objective)
    if part.feedback == "Revisions":
        batch: Pairs | Revisions = revisions(game, generator, improver)
    else:
        batch = pairs(game, generator)
    return (game.weight * part.function(batch, **settings)[0].view_as(game.weight)).sum(-1)
