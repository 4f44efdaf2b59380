"""Best-of-n: its cost in KL, how often it wins, how near it is to the best policy of its KL, and Goodhart's law."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from stages.generate.samplers.best_of_n import best_of_n, expected_best
from stages.records import Candidate, Prompt
from tests.claims.claim import Claim, measure
from tests.contract.test_samplers import Die
from tests.label.world import prompt

ARMS, PROMPTS, DRAWN, MANY, SEEDS = 5000, 40, 4000, 4096, 5

CLAIMS = (
    Claim("The best of 4 beats one draw four times in five", "wins, 4", 4 / 5, within=0.03),
    Claim("and the best of 16 sixteen times in seventeen", "wins, 16", 16 / 17, within=0.03),
    *(
        Claim(f"The best of {n} costs log n - (n - 1) / n of KL", f"kl, {n}", math.log(n) - (n - 1) / n, within=2e-3)
        for n in (2, 4, 16, 64)
    ),
    Claim("Of six answers the best of 64 costs less than that", "kl bound less kl of six, 64", 0.0),
    Claim("Scored draws tell what the best of 16 would gain", "estimated, 16", "sampled, 16", within=0.1),
    Claim("No policy of its KL gains more than the tilted reference", "tilted, 16", "exact, 16"),
    Claim("The best of 4 gains nearly as much", "tilted, 4", "exact, 4", within=0.15),
    Claim("By a proxy of heavy-tailed errors the true reward rises with n", "true, at its peak", "true, 1", 0.5),
    Claim("and falls again", "true, at its peak", f"true, {MANY}", 0.2),
    Claim("while the proxy goes on rising from there", f"proxy, {MANY}", "proxy, at its peak", 1.0),
)


def best(p: Tensor, score: Tensor, n: int) -> Tensor:
    """Exact probabilities `[a]` of the best of n: F^n - (F - p)^n for the cumulative F in the order of the score."""
    order = score.argsort()
    cdf = p[order].cumsum(0)
    pi = torch.empty_like(p)
    pi[order] = cdf**n - (cdf - p[order]).clamp(min=0) ** n
    return pi


def kl(pi: Tensor, p: Tensor) -> float:
    """KL(pi || p) in nats."""
    return float(torch.where(pi > 0, pi * (pi / p).log(), 0.0).sum())


def tilted(p: Tensor, reward: Tensor, cost: float) -> Tensor:
    """The policy p * exp(r / beta) / Z whose KL is `cost`, by bisection."""
    low, high = 0.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kl((p.log() + middle * reward).softmax(0), p) < cost else (low, middle)
    return (p.log() + low * reward).softmax(0)


def sampled(p: Tensor, reward: Tensor, n: int, seed: int) -> tuple[float, float]:
    """How often the sampler's best beats one draw of the policy, and what it gains."""
    die, ask = Die(*p.tolist()), [prompt()]

    def value(prompts: list[Prompt], candidates: list[Candidate]) -> list[float]:
        return [float(reward[int(c.text)]) for c in candidates]

    found, one = (
        torch.tensor(value([], best_of_n(die, ask, DRAWN, seed=at, score=value, n=size)))
        for at, size in ((2 * seed, n), (2 * seed + 1, 1))
    )
    return float((found > one).double().mean() + 0.5 * (found == one).double().mean()), float(found.mean())


def goodhart(seed: int) -> dict[str, float]:
    """Mean true reward of the best of n by a proxy whose errors have the tails of Student's t of two degrees."""
    noise = torch.Generator().manual_seed(100 + seed)
    true, error, one, two = torch.randn(4, PROMPTS, ARMS, generator=noise, dtype=torch.float64)
    proxy = true + 0.5 * error / ((one**2 + two**2) / 2).sqrt()
    p = torch.full((ARMS,), 1 / ARMS, dtype=torch.float64)
    curve: dict[int, tuple[float, float]] = {}
    for n in (2**i for i in range(13)):
        pi = torch.stack([best(p, row, n) for row in proxy])
        curve[n] = float((pi * true).sum() / PROMPTS), float((pi * proxy).sum() / PROMPTS)
    curve = {1: curve[1], MANY: curve[MANY], 0: max(curve.values())}
    names = {1: "1", MANY: f"{MANY}", 0: "at its peak"}
    return {f"{name}, {names[n]}": value for n, both in curve.items() for name, value in zip(("true", "proxy"), both)}


def once(seed: int) -> dict[str, float]:
    noise = torch.Generator().manual_seed(seed)
    reward, logits = torch.randn(2, ARMS, generator=noise, dtype=torch.float64)
    p, told = (0.3 * logits).softmax(0), {}
    of: Callable[[int], Tensor] = partial(best, p, reward)
    for n in (2, 4, 16, 64):
        told |= {f"kl, {n}": kl(of(n), p), f"exact, {n}": float(of(n) @ reward)}
        told[f"tilted, {n}"] = float(tilted(p, reward, kl(of(n), p)) @ reward)
    for n in (4, 16):
        told[f"wins, {n}"], told[f"sampled, {n}"] = sampled(p, reward, n, seed)
    scores = reward[torch.multinomial(p, DRAWN, replacement=True, generator=noise)].tolist()
    told["estimated, 16"] = sum(expected_best(scores[i : i + 64], 16) for i in range(0, DRAWN - 63, 64)) / (DRAWN // 64)
    six = (0.3 * logits[:6]).softmax(0)
    told["kl bound less kl of six, 64"] = math.log(64) - 63 / 64 - kl(best(six, reward[:6], 64), six)
    return told | goodhart(seed)


@pytest.fixture(scope="module")
def figures():
    return measure("best-of-n", "best_of_n", once, CLAIMS, seeds=SEEDS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
