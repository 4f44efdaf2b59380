"""Batches for tests of objectives: written by hand from lists, or random with ragged lengths, in float64."""

from dataclasses import fields, is_dataclass, replace
from functools import wraps

import torch
from torch import Tensor

from stages.batches import Groups, Hybrid, Pairs, Revisions, Singles, Steps
from stages.parts import Part

Batch = Pairs | Groups | Singles | Hybrid | Revisions


def steps(logp: list[list[float]], ref: list[list[float]] | None = None) -> Steps:
    """Candidates from ragged lists, padded with NaN where a list is short: what reads padding shows."""
    width = max(len(row) for row in logp)

    def tensor(rows: list[list[float]]) -> Tensor:
        return torch.tensor([row + [torch.nan] * (width - len(row)) for row in rows], dtype=torch.float64)

    mask = ~tensor(logp).isnan()
    return Steps(tensor(logp).requires_grad_(), mask, ref=None if ref is None else tensor(ref))


def pair(chosen: float, rejected: float, **given: float) -> Pairs:
    """One pair of one step each, reference 0, so that `chosen` and `rejected` are h (and L, and L / |y|)."""
    extra = {name: torch.tensor([value], dtype=torch.float64) for name, value in given.items()}
    return Pairs(steps([[chosen]], ref=[[0.0]]), steps([[rejected]], ref=[[0.0]]), **extra)


def random_steps(shape: tuple[int, ...], noise: torch.Generator) -> Steps:
    """Every field filled. Lengths differ and are at least 1; log-probs and entropies have their signs."""

    def draw() -> Tensor:
        return torch.randn(shape, generator=noise, dtype=torch.float64)

    own = torch.Generator().manual_seed(noise.initial_seed() + shape[-1])
    ranks = torch.tensor([1 / 3, 2 / 3, 1.0, torch.inf], dtype=torch.float64)
    lengths = torch.randint(1, shape[-1] + 1, (*shape[:-1], 1), generator=noise)
    lengths.view(-1)[:2] = torch.tensor([1, shape[-1]])
    return Steps(
        logp=(-draw().abs() - 0.01).requires_grad_(),
        mask=torch.arange(shape[-1]) < lengths,
        ref=-draw().abs() - 0.01,
        old=-draw().abs() - 0.01,
        value=draw(),
        reward=draw(),
        entropy=draw().abs(),
        kl=draw().abs(),
        hidden=torch.randn((*shape, 2), generator=own, dtype=torch.float64),
        key_rank=ranks[torch.randint(len(ranks), shape, generator=own)],
    )


def random_batch(feedback: str, *, b: int = 5, t: int = 4, k: int = 3, seed: int = 0) -> Batch:
    """A batch of a feedback type with every field filled."""
    if feedback == "Hybrid":
        return Hybrid(random_batch("Pairs", b=b, t=t, seed=seed), random_batch("Groups", b=b, t=t, k=k, seed=seed + 1))
    if feedback == "Revisions":
        return Revisions(*(random_batch("Pairs", b=b, t=t, seed=3 * seed + i) for i in range(3)))
    noise = torch.Generator().manual_seed(seed)

    def rate() -> Tensor:
        return 0.05 + 0.9 * torch.rand(b, generator=noise, dtype=torch.float64)

    if feedback == "Pairs":
        sides = random_steps((b, t), noise), random_steps((b, t + 1), noise)
        return Pairs(*sides, prob=rate(), margin=rate(), chosen_rate=rate(), rejected_rate=rate())
    if feedback == "Singles":
        score = torch.randn(b, generator=noise, dtype=torch.float64)
        label = torch.arange(b) % 2 == 0
        mismatch = random_steps((b, t + 1), noise)
        raised = replace(
            mismatch, logp=mismatch.logp.detach() + 2.0
        )  # a mean log-ratio above 0, so that z0 is not clamped
        return Singles(random_steps((b, t), noise), label=label, score=score, mismatch=raised)
    valid = torch.ones(b, k, dtype=torch.bool)
    valid[0, -1] = False
    reward, advantage = torch.randn(2, b, k, generator=noise, dtype=torch.float64)
    return Groups(random_steps((b, k, t), noise), reward=reward, valid=valid, advantage=advantage)


def group(logp: list[float], **given: list[float]) -> Groups:
    """One group of one-step members, reference and behaviour 0 unless they are given (`ref`, `old`, `kl`)."""
    zero = [0.0] * len(logp)
    given = {"ref": zero, "old": zero, "reward": zero, **given}
    row = {name: torch.tensor([values], dtype=torch.float64) for name, values in given.items()}
    by_step = {name: row.pop(name)[..., None] for name in ("ref", "old", "kl") if name in row}
    taken = torch.tensor([logp], dtype=torch.float64)[..., None].requires_grad_()
    there = torch.ones(1, len(logp), dtype=torch.bool)
    return Groups(Steps(taken, there[..., None], **by_step), valid=there, **row)


def parts_of(batch: Batch) -> dict[str, Steps]:
    """The `Steps` of a batch by field name, those of a batch within it under both names: `pairs.chosen`."""
    found = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Steps):
            found[field.name] = value
        elif is_dataclass(value):
            found |= {f"{field.name}.{name}": steps for name, steps in parts_of(value).items()}
    return found


def with_parts(batch: Batch, parts: dict[str, Steps]) -> Batch:
    """The batch with other `Steps`, named as `parts_of` names them."""
    own, within = {}, {}
    for name, steps in parts.items():
        head, _, rest = name.partition(".")
        if rest:
            within.setdefault(head, {})[rest] = steps
        else:
            own[head] = steps
    return replace(batch, **own, **{head: with_parts(getattr(batch, head), inner) for head, inner in within.items()})


def with_head(found: Part) -> Part:
    """The objective with random parameters of its own, in the shape of its new ones, if it has any."""
    init = found.init
    if init is None:
        return found

    @wraps(found.function)
    def function(batch: Batch, **settings) -> tuple[Tensor, dict[str, Tensor]]:
        noise = torch.Generator().manual_seed(7)
        new = init(batch, **settings).items()
        head = {name: torch.randn(value.shape, generator=noise, dtype=value.dtype) for name, value in new}
        return found.function(batch, head=head, **settings)

    return replace(found, function=function)


def trained(batch: Batch) -> dict[str, Tensor]:
    """The log-probs that a loss may send gradients to, by the name of their `Steps`."""
    return {name: each.logp for name, each in parts_of(batch).items() if name != "mismatch"}


def gradients(objective, batch: Batch, **settings) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss per example and the gradient of its mean over the batch, by the name of the `Steps`."""
    loss, _ = objective(batch, **settings)
    inputs = trained(batch)
    found = torch.autograd.grad(loss.mean(), list(inputs.values()), allow_unused=True, materialize_grads=True)
    return loss.detach(), dict(zip(inputs, found))


def minimize(parameter: Tensor, loss) -> None:
    """Move a parameter to the minimum of `loss()`, as far as float64 goes."""
    optimizer = torch.optim.LBFGS(
        [parameter], max_iter=1000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def swapped(batch: Pairs | Hybrid | Revisions) -> Pairs | Hybrid | Revisions:
    """The same pairs told the other way round."""
    if isinstance(batch, Hybrid):
        return replace(batch, pairs=swapped(batch.pairs))
    if isinstance(batch, Revisions):
        return Revisions(swapped(batch.answers), swapped(batch.of_rejected), swapped(batch.of_chosen))
    return Pairs(
        chosen=batch.rejected,
        rejected=batch.chosen,
        prob=None if batch.prob is None else 1 - batch.prob,
        margin=None if batch.margin is None else -batch.margin,
        chosen_rate=batch.rejected_rate,
        rejected_rate=batch.chosen_rate,
    )


def with_prob(batch: Pairs | Hybrid | Revisions, change) -> Pairs | Hybrid | Revisions:
    """The same pairs with `change` applied to P(chosen is preferred)."""
    if isinstance(batch, Pairs):
        return replace(batch, prob=change(batch.prob))
    within = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{name: with_prob(v, change) for name, v in within.items() if isinstance(v, Pairs)})


def values(steps: Steps, *, reference: bool = False) -> list[list[float]]:
    """The real log-probs (or log-ratios to the reference) as ragged lists: what an independent reference reads."""
    numbers = steps.logp.detach() - (steps.ref if reference else 0)
    return [row[kept].tolist() for row, kept in zip(numbers, steps.mask)]


def members(batch: Groups, field: str) -> list[list[list[float]]]:
    """A field of the steps as ragged lists `[g][k][t]`, absent members left out: what an independent loop reads."""
    held = getattr(batch.steps, field).detach()
    return [
        [row[kept].tolist() for row, kept, there in zip(*group) if there]
        for group in zip(held, batch.steps.mask, batch.valid)
    ]


def check_slopes(
    batch: Groups, found: Tensor, slopes: list[list[list[float]]], *, rtol: float = 1e-10, atol: float = 1e-12
) -> None:
    """Compare a gradient `[g,k,t]` with ragged lists `[g][k][t]`; outside them it must be 0."""
    expected = torch.zeros_like(found)
    for g, group in enumerate(slopes):
        present = batch.valid[g].nonzero().flatten().tolist()
        for k, row in zip(present, group):
            expected[g, k][batch.steps.mask[g, k]] = torch.tensor(row, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def check_against(objective, batch: Pairs, reference, *, to_reference: bool = False, **settings) -> None:
    """Compare value and gradient with an independent reference over plain floats.

    Args:
        objective: the part.
        batch: pairs with every field.
        reference: takes ragged lists of both sides, p and the batch; returns the loss of each example and, for each
            side, the gradient of the batch's mean loss with respect to each example's steps (the same for all of them).
        to_reference: hand it log-ratios to the reference instead of log-probs.
        settings: of the part.
    """
    sides = (values(each, reference=to_reference) for each in (batch.chosen, batch.rejected))
    loss, chosen, rejected = reference(*sides, batch)
    found, gradient = gradients(objective, batch, **settings)
    torch.testing.assert_close(found, torch.tensor(loss, dtype=torch.float64), rtol=1e-10, atol=1e-12)
    for name, slope in (("chosen", chosen), ("rejected", rejected)):
        mask = parts_of(batch)[name].mask
        expected = torch.tensor(slope, dtype=torch.float64)[:, None] * mask
        torch.testing.assert_close(gradient[name], expected, rtol=1e-10, atol=1e-12)
