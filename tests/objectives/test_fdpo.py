import math
from dataclasses import replace

import pytest
import torch

from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.fdpo import fdpo
from tests.objectives.build import check_against, gradients, pair, random_batch, steps, values

SLOPES = {  # dS/dh
    "reverse_kl": lambda h, alpha: 1.0,
    "forward_kl": lambda h, alpha: math.exp(-h),
    "jensen_shannon": lambda h, alpha: 1 / (1 + math.exp(h)),
    "alpha": lambda h, alpha: math.exp(-alpha * h),
}
GENERATORS = {  # f(u)
    "reverse_kl": lambda u, a: u * math.log(u),
    "forward_kl": lambda u, a: -math.log(u),
    "jensen_shannon": lambda u, a: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
    "alpha": lambda u, a: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)),
}
every = pytest.mark.parametrize("divergence", GENERATORS)


def test_worked_numbers() -> None:
    """h_chosen = log 2, h_rejected = -log 2, beta = 2; S(h): forward 1/2 and -1, JS log 4/3 and log 2/3, alpha below.

    forward: m = 2 * 1.5 = 3, loss log(1 + e^-3) = 0.048587; JS: m = 2 log 2, loss log(1 + 1/4) = 0.223144;
    alpha 1/2: S = 2 (1 - 1/sqrt 2) and 2 (1 - sqrt 2), m = 4 * 0.707107 = 2.828427, loss 0.057425.
    """
    batch = pair(math.log(2), -math.log(2))
    told = {name: fdpo(batch, beta=2.0, divergence=name, alpha=0.5)[0].item() for name in GENERATORS}
    wanted = {"forward_kl": 0.048587, "jensen_shannon": 0.223144, "alpha": 0.057425, "reverse_kl": 0.060625}
    assert told == pytest.approx(wanted, abs=1e-6)


@every
def test_independent_reference(divergence: str) -> None:
    """The score from f itself, by a central difference of f at u = e^h; the gradient from dS/dh."""
    beta, alpha, f = 0.3, 0.4, GENERATORS[divergence]

    def score(h: float) -> float:
        u, step = math.exp(h), 1e-6 * math.exp(h)
        return (f(u + step, alpha) - f(u - step, alpha)) / (2 * step)

    batch = random_batch("Pairs", seed=1)
    loss, gradient = gradients(fdpo, batch, beta=beta, divergence=divergence, alpha=alpha)
    ratios = (values(side, reference=True) for side in (batch.chosen, batch.rejected))
    for i, (w, r, p) in enumerate(zip(*ratios, batch.prob.tolist())):
        h, k = math.fsum(w), math.fsum(r)
        m = beta * (score(h) - score(k))
        assert loss[i].item() == pytest.approx(
            p * math.log1p(math.exp(-m)) + (1 - p) * math.log1p(math.exp(m)), rel=1e-7
        )
        slope = beta * (-p / (1 + math.exp(m)) + (1 - p) / (1 + math.exp(-m))) / 5
        for side, ratio, sign in (("chosen", h, 1), ("rejected", k, -1)):
            wanted = sign * slope * SLOPES[divergence](ratio, alpha)
            assert gradient[side][i][0].item() == pytest.approx(wanted, rel=1e-7)


def test_reverse_kl_against_plain_sums() -> None:
    def reference(chosen, rejected, batch):
        m = [math.fsum(w) - math.fsum(r) for w, r in zip(chosen, rejected)]
        p = batch.prob.tolist()
        loss = [q * math.log1p(math.exp(-x)) + (1 - q) * math.log1p(math.exp(x)) for q, x in zip(p, m)]
        slope = [(-q / (1 + math.exp(x)) + (1 - q) / (1 + math.exp(-x))) / len(m) for q, x in zip(p, m)]
        return loss, slope, [-s for s in slope]

    check_against(fdpo, random_batch("Pairs"), reference, to_reference=True, beta=1.0, divergence="reverse_kl")


def test_reverse_kl_is_dpo() -> None:
    batch = random_batch("Pairs")
    torch.testing.assert_close(gradients(fdpo, batch, divergence="reverse_kl"), gradients(dpo, batch))


@pytest.mark.parametrize(("alpha", "limit"), [(1e-4, "reverse_kl"), (1 - 1e-4, "forward_kl")])
def test_alpha_runs_from_reverse_to_forward_kl(alpha: float, limit: str) -> None:
    for h in (-3.0, -0.5, 0.0, 1.0, 3.0):
        one = fdpo(pair(h, 0.0), beta=1.0, divergence="alpha", alpha=alpha)[1]["rewards/chosen"].item()
        assert one == pytest.approx(
            fdpo(pair(h, 0.0), beta=1.0, divergence=limit)[1]["rewards/chosen"].item(), abs=1e-3, rel=1e-3
        )


@every
def test_at_the_reference(divergence: str) -> None:
    """A loss of log 2, rewards 0, and a slope of -beta / 2 times dS/dh(0) = 1, 1, 1/2, 1."""
    loss, gradient = gradients(fdpo, pair(0.0, 0.0), beta=0.3, divergence=divergence)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-14)
    assert gradient["chosen"].item() == pytest.approx(-0.15 * (0.5 if divergence == "jensen_shannon" else 1.0))
    stats = fdpo(pair(0.0, 0.0), divergence=divergence)[1]
    assert stats["rewards/chosen"].item() == pytest.approx(0.0, abs=1e-15)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_rise_with_h_and_nothing_overflows(divergence: str, dtype: torch.dtype) -> None:
    """From -60 to 60 nats, and far beyond, where an exponential alone would be infinite."""
    h = torch.tensor([-4000.0, -90.0, -60.0, -20.0, -1.0, 0.0, 1.0, 5.0], dtype=dtype)[:, None].requires_grad_()
    there, zero = torch.ones_like(h, dtype=torch.bool), torch.zeros_like(h)
    side = replace(pair(0, 0).chosen, logp=h, mask=there, ref=zero)
    loss, stats = fdpo(replace(pair(0, 0), chosen=side, rejected=side), divergence=divergence, alpha=0.7)
    rewards = stats["rewards/chosen"]
    assert rewards.isfinite().all()
    assert (rewards.diff() > 0).all()
    base = replace(side, logp=zero)
    for chosen, rejected in ((side, base), (base, side)):
        loss, _ = fdpo(replace(pair(0, 0), chosen=chosen, rejected=rejected), divergence=divergence, alpha=0.7)
        (slope,) = torch.autograd.grad(loss.sum(), h)
        assert loss.isfinite().all()
        assert slope.isfinite().all()
    (slope,) = torch.autograd.grad(fdpo(replace(pair(0, 0), chosen=side, rejected=base))[0].sum(), h)
    assert (slope[:3] < 0).all(), "a chosen answer that fell this far can come back"


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha"])
def test_up_to_sixty_nats_the_score_is_the_exponential(divergence: str) -> None:
    """The straight part begins beyond."""
    for h in (-59.0, 60.0):
        reward = fdpo(pair(h, 0.0), beta=1.0, divergence=divergence, alpha=0.99)[1]["rewards/chosen"].item()
        wanted = {
            "reverse_kl": h,
            "forward_kl": 1 - math.exp(-h),
            "jensen_shannon": -math.log1p(math.exp(-h)) + math.log(2),
            "alpha": (1 - math.exp(-0.99 * h)) / 0.99,
        }
        assert reward == pytest.approx(wanted[divergence], rel=1e-12)


def test_jensen_shannon_saturates() -> None:
    """Raising a winner gains at most log 2 a beta."""
    stats = fdpo(pair(500.0, 0.0), beta=1.0, divergence="jensen_shannon")[1]
    assert stats["rewards/margins"].item() == pytest.approx(math.log(2))
    assert stats["log_ratios/margins"].item() == 500.0


@every
def test_the_optimum_of_exact_labels_has_the_rewards_as_scores(divergence: str) -> None:
    """At it beta * (S(h_i) - S(h_j)) = r_i - r_j on a table of three arms with Bradley-Terry probabilities."""
    beta, reward = 0.8, torch.tensor([0.9, 0.0, -0.7], dtype=torch.float64)
    ref = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log()
    logits = ref.clone().requires_grad_()
    first, second = torch.triu_indices(3, 3, 1)
    there = torch.ones(3, 1, dtype=torch.bool)

    def stats():
        logp = logits.log_softmax(-1)
        sides = [steps([[0.0]]) for _ in range(2)]
        sides = [
            replace(s, logp=logp[i][:, None], ref=ref[i][:, None], mask=there) for s, i in zip(sides, (first, second))
        ]
        batch = replace(
            pair(0, 0), chosen=sides[0], rejected=sides[1], prob=torch.sigmoid(reward[first] - reward[second])
        )
        return fdpo(batch, beta=beta, divergence=divergence, alpha=0.4)

    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = stats()[0].mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(stats()[1]["rewards/margins"], reward[first] - reward[second], atol=1e-4, rtol=0)
