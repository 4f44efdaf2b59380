"""HyPO: DPO's loss, and a surrogate whose gradient is that of the reverse KL."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from stages.batches import Groups, Hybrid, Steps
from stages.optimize.objectives.dpo import dpo
from stages.optimize.objectives.hypo import hypo
from tests.objectives.build import gradients, members, pair, random_batch, values

ARMS = 5


def samples(logp: Tensor, ref: Tensor) -> Groups:
    """One-step samples `[g,k]` of the policy itself."""
    there = torch.ones_like(logp, dtype=torch.bool)
    steps = Steps(logp[..., None], there[..., None], ref=ref[..., None], old=logp.detach()[..., None])
    return Groups(steps, reward=torch.zeros_like(logp), valid=there)


def drawn(logits: Tensor, ref: Tensor, prompts: int, k: int, seed: int) -> Hybrid:
    """K fresh samples of a bandit's policy for each of many prompts, beside pairs that teach nothing."""
    noise, table = torch.Generator().manual_seed(seed), logits.log_softmax(-1)
    arms = torch.multinomial(table.detach().exp().expand(prompts, -1), k, replacement=True, generator=noise)
    tied = pair(0.0, 0.0)
    sides = {
        name: Steps(*(x.detach().expand(prompts, 1) for x in (side.logp, side.mask, side.ref)))
        for name, side in (("chosen", tied.chosen), ("rejected", tied.rejected))
    }
    return Hybrid(replace(tied, **sides), samples(table[arms], ref[arms]))


def exact(logits: Tensor, ref: Tensor) -> Tensor:
    """KL(policy || reference) of a bandit."""
    table = logits.log_softmax(-1)
    return (table.exp() * (table - ref)).sum()


@pytest.fixture
def bandit() -> tuple[Tensor, Tensor]:
    """Logits of a policy that learns, and log-probs of the reference."""
    noise = torch.Generator().manual_seed(5)
    logits, ref = torch.randn(2, ARMS, generator=noise, dtype=torch.float64)
    return logits.requires_grad_(), ref.log_softmax(-1)


def test_worked_numbers() -> None:
    """Chosen has h = 2 and rejected 0, beta = 0.5: m = 1 and DPO's share is log(1 + e^-1) = 0.313262.

    Two samples with L = -1 and -2 under a reference of -3 each: H = 2 and 1, so that each is 1 and -1 above the other.
    The surrogate is the mean of -1 * 1 and -2 * -1, 1/2; the KL that is reported is 1.5.
    """
    logp = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    batch = Hybrid(pair(2.0, 0.0), samples(logp, torch.full_like(logp, -3.0)))
    loss, stats = hypo(batch, beta=0.5, lambda_kl=0.2)
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(-1)) + 0.2 * 0.5], abs=1e-12)
    assert stats["kl"].tolist() == pytest.approx([1.5])
    alone = Hybrid(pair(2.0, 0.0), samples(logp[:, :1], torch.full((1, 1), -3.0, dtype=torch.float64)))
    expected = math.log1p(math.exp(-1)) + 0.2 * -1 * 2
    assert hypo(alone, beta=0.5, lambda_kl=0.2)[0].tolist() == pytest.approx([expected], abs=1e-12), "no other: b = 0"


def test_value_and_gradient_against_plain_floats() -> None:
    """A plain loop over pairs and the present samples of each; a sample's slope is its height, shared by its steps."""
    beta, strength = 0.3, 0.7
    batch = random_batch("Hybrid")
    b, p = len(batch.pairs.prob), batch.pairs.prob.tolist()
    sides = [[sum(row) for row in values(side, reference=True)] for side in (batch.pairs.chosen, batch.pairs.rejected)]
    said, old, ref = (members(batch.samples, name) for name in ("logp", "old", "ref"))
    losses, slope, heights = [], [], []
    for i in range(b):
        m = beta * (sides[0][i] - sides[1][i])
        win = 1 / (1 + math.exp(-m))
        h = [sum(o) - sum(r) for o, r in zip(old[i], ref[i])]
        above = [x - (sum(h) - x) / (len(h) - 1) for x in h]
        surrogate = sum(sum(row) * a for row, a in zip(said[i], above)) / len(h)
        losses.append(-p[i] * math.log(win) - (1 - p[i]) * math.log(1 - win) + strength * surrogate)
        slope.append(beta * (win - p[i]) / b)
        heights.append([strength * a / len(h) / b for a in above])
    loss, found = gradients(hypo, batch, beta=beta, lambda_kl=strength)
    torch.testing.assert_close(loss, torch.tensor(losses, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    for name, sign in (("chosen", 1), ("rejected", -1)):
        mask = getattr(batch.pairs, name).mask
        expected = sign * torch.tensor(slope, dtype=torch.float64)[:, None] * mask
        torch.testing.assert_close(found[f"pairs.{name}"], expected, rtol=1e-10, atol=1e-12)
    expected = torch.zeros_like(found["samples.steps"])
    for i, row in enumerate(heights):
        for k, height in zip(batch.samples.valid[i].nonzero().flatten().tolist(), row):
            expected[i, k] = height * batch.samples.steps.mask[i, k].double()
    torch.testing.assert_close(found["samples.steps"], expected, rtol=1e-10, atol=1e-12)


def test_without_the_kl_it_is_dpo_and_reads_no_sample() -> None:
    batch = random_batch("Hybrid")
    loss, stats = hypo(replace(batch, samples=None), beta=0.3, lambda_kl=0.0)
    assert torch.equal(loss, dpo(batch.pairs, beta=0.3)[0])
    assert "kl" not in stats


def test_at_the_reference_the_kl_pulls_nowhere(bandit) -> None:
    logits, _ = bandit
    batch = drawn(logits, logits.detach().log_softmax(-1), prompts=8, k=4, seed=0)
    loss, stats = hypo(batch, lambda_kl=1.0)
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.allclose(loss, torch.tensor(math.log(2), dtype=torch.float64), atol=1e-12)
    assert slope.abs().max() < 1e-12
    assert stats["kl"].abs().max() < 1e-12


@pytest.mark.parametrize("k", [1, 4])
def test_its_expected_gradient_is_that_of_the_exact_kl(bandit, k: int) -> None:
    """The mean of 100,000 samples, with a baseline and without; so is its report of the KL."""
    logits, ref = bandit
    loss, stats = hypo(drawn(logits, ref, prompts=100_000 // k, k=k, seed=1), lambda_kl=1.0)
    (found,) = torch.autograd.grad(loss.mean(), logits)
    (truth,) = torch.autograd.grad(exact(logits, ref), logits)
    assert truth.norm() > 0.1
    torch.testing.assert_close(found, truth, rtol=0, atol=0.02)
    assert float(stats["kl"].mean()) == pytest.approx(float(exact(logits.detach(), ref)), abs=0.02)


def test_the_baseline_lowers_the_variance(bandit) -> None:
    """Of estimates from four samples each; with a reference that is not normalised, without bound."""
    logits, ref = bandit

    def variance(k: int, shift: float) -> float:
        table = torch.zeros(4000, ARMS, dtype=torch.float64) + logits.detach()
        table.requires_grad_()
        rows = torch.arange(4000).repeat_interleave(4 // k)
        noise = torch.Generator().manual_seed(2)
        arms = torch.multinomial(table.detach().softmax(-1)[rows], k, replacement=True, generator=noise)
        logp = table.log_softmax(-1)[rows].gather(-1, arms)
        batch = replace(drawn(logits, ref, len(rows), k, 0), samples=samples(logp, (ref + shift)[arms]))
        (found,) = torch.autograd.grad(hypo(batch, lambda_kl=1.0)[0].sum() / (4 // k), table)
        return float(found.var(0).sum())

    assert variance(4, 0.0) < variance(1, 0.0)
    assert variance(4, 3.0) == pytest.approx(variance(4, 0.0), rel=1e-9)
    assert variance(1, 3.0) > 2 * variance(1, 0.0)


def test_a_constant_in_the_reference_changes_no_gradient() -> None:
    batch = random_batch("Hybrid")
    steps = batch.samples.steps
    one = torch.zeros_like(steps.ref)
    one[..., 0] = 1.7  # every sample has a first step
    moved = replace(batch, samples=replace(batch.samples, steps=replace(steps, ref=steps.ref + one)))
    before, after = (gradients(hypo, each, lambda_kl=0.5)[1] for each in (batch, moved))
    for name, slope in before.items():
        torch.testing.assert_close(slope, after[name], rtol=1e-9, atol=1e-12)


def test_much_of_it_holds_the_policy_at_the_reference() -> None:
    """A pair that pushes arm 0 above arm 1 without end: DPO leaves, a hundred nats of price a nat do not."""

    def learned(strength: float) -> float:
        ref = torch.zeros(ARMS, dtype=torch.float64).log_softmax(-1)
        logits = torch.zeros(ARMS, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=0.02 if strength else 1.0)
        for step in range(200):
            table = logits.log_softmax(-1)
            batch = drawn(logits, ref, prompts=16, k=8, seed=step)
            sides = {
                name: Steps(table[arm].expand(16, 1), side.mask, ref=ref[arm].expand(16, 1))
                for arm, (name, side) in enumerate(
                    {"chosen": batch.pairs.chosen, "rejected": batch.pairs.rejected}.items()
                )
            }
            optimizer.zero_grad()
            hypo(Hybrid(replace(batch.pairs, **sides), batch.samples), beta=1.0, lambda_kl=strength)[
                0
            ].mean().backward()
            optimizer.step()
        return float(exact(logits.detach(), ref))

    assert learned(100.0) < 1e-3 < 0.3 < learned(0.0)
