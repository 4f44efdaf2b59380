"""One battery for all objectives, found by name: what the contract promises of any of them."""

import ast
import inspect
import math
from dataclasses import fields, is_dataclass, replace
from typing import get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from stages import parts
from stages.batches import Steps, apply
from stages.errors import UserError
from stages.policies.tabular import Tabular
from tests.objectives.build import (
    Batch,
    gradients,
    parts_of,
    random_batch,
    swapped,
    trained,
    with_head,
    with_parts,
    with_prob,
)

ALL = parts.names("objective")


def objective(name: str) -> parts.Part:
    """The part by its name, any parameters of its own bound."""
    return with_head(parts.find("objective", name))


OBJECTIVES = [n for n in ALL if parts.find("objective", n).feedback != "Pathwise"]  # that one samples by itself
STEP_FIELDS = {
    "reference": "ref",
    "behaviour": "old",
    "value": "value",
    "entropy": "entropy",
    "step_reward": "reward",
    "kl": "kl",
    "hidden": "hidden",
    "key_rank": "key_rank",
}
BATCH_FIELDS = {  # of these a batch type has some
    "scores": ("margin", "chosen_rate", "rejected_rate", "score"),
    "mismatch": ("mismatch",),
    "advantage": ("advantage",),
    "samples": ("samples",),
}
CHECKED_NEEDS = (*STEP_FIELDS, *BATCH_FIELDS)
PAIRED = ("Pairs", "Hybrid", "Revisions")  # feedback that says which of two answers is preferred
EXTREMES = (0.0, -1e-7, -1e3)  # log-probs of a certain, a nearly certain and a nearly impossible step

any_kind = pytest.mark.parametrize("name", ALL)
every = pytest.mark.parametrize("name", OBJECTIVES)
every_need = pytest.mark.parametrize("need", CHECKED_NEEDS)


def batch_of(found: parts.Part, **shape) -> Batch:
    """A random batch for the part that holds what it needs and no more."""
    batch = random_batch(found.feedback, **shape)
    for need in CHECKED_NEEDS:
        batch = batch if need in found.spec.needs else changed(batch, need, lambda _: None)
    return batch


def changed(batch, need: str, change):
    """The batch with `change` applied to every field that stands for a need, in what it is made of too."""
    own = () if isinstance(batch, Steps) else BATCH_FIELDS.get(need, ())
    own = (STEP_FIELDS[need],) if isinstance(batch, Steps) and need in STEP_FIELDS else own
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    within = {n: changed(v, need, change) for n, v in values.items() if is_dataclass(v) and n not in own}
    return replace(batch, **within, **{n: change(values[n]) for n in own if n in values})


def redrawn(value):
    """Other values of the same shape and kind: of tensors, or of the log-probs in what they are part of."""
    if is_dataclass(value):
        moved = {name: replace(steps, logp=redrawn(steps.logp)) for name, steps in parts_of(value).items()}
        return replace(value, logp=redrawn(value.logp)) if isinstance(value, Steps) else with_parts(value, moved)
    noise = torch.Generator().manual_seed(99)
    return value + 0.1 + 0.1 * torch.rand(value.shape, generator=noise, dtype=value.dtype)


def with_logp(batch, logps: dict[str, Tensor]):
    """The batch with other policy log-probs."""
    return with_parts(batch, {name: replace(parts_of(batch)[name], logp=logp) for name, logp in logps.items()})


def row_count(batch) -> int:
    return len(next(iter(trained(batch).values())))


def rows(batch, index):
    """Some examples of a batch, in the order of the index."""
    return apply(batch, lambda tensor: tensor[index])


def same(left: tuple[Tensor, dict], right: tuple[Tensor, dict], rtol: float = 1e-9, atol: float = 1e-12) -> bool:
    """Whether losses and gradients agree, to more digits than float32 has: a paper's setting may act in the last."""
    losses = left[0].shape == right[0].shape and torch.allclose(left[0], right[0], rtol, atol)
    return losses and all(torch.allclose(left[1][n], right[1][n], rtol, atol) for n in left[1])


def another(found: parts.Part, setting: str):
    """A legal value of a setting that is not its default."""
    default = found.settings[setting].default
    if isinstance(default, bool):
        return not default
    choices = get_args(get_type_hints(found.function)[setting])  # of a Literal
    number = default if isinstance(default, int | float) else 1
    for value in (*choices, number * 2, number / 2, number + 0.2, number + 1, number - 1):
        try:
            if value != default and parts.check(found, {setting: value})[setting] == value:
                return value
        except UserError:
            continue
    raise AssertionError(f"{found.name}.{setting}: no legal value besides {default!r} was found")


@any_kind
def test_spec_and_signature_follow_the_contract(name: str) -> None:
    found = objective(name)
    parameters = list(inspect.signature(found.function).parameters.values())
    assert found.spec.paper
    assert found.spec.equation
    assert found.feedback in ("Pairs", "Groups", "Singles", "Pathwise", "Hybrid", "Revisions")
    assert parameters[0].name == "batch"
    own = ["head"] if found.init else []
    assert [p.name for p in parameters[1:]] == own + list(found.settings), "settings are keyword-only, with defaults"
    defaults = {setting: parameter.default for setting, parameter in found.settings.items()}
    assert parts.check(found, defaults) == defaults


@any_kind
def test_docstring_tells_what_a_reader_needs(name: str) -> None:
    found = objective(name)
    text = inspect.getdoc(found.function) or ""
    assert "loss = " in text, "the equation"
    assert "Differences from the paper:" in text
    assert "Source:" in text
    assert f">>> {name}(" in text, "an example that runs"
    assert "Time is " in text, "how steps are reduced and why"
    for setting in found.settings:
        assert f"\n    {setting}: " in text, f"the setting {setting}"


@any_kind
def test_file_imports_no_other_part(name: str) -> None:
    tree = ast.parse((parts.ROOT / objective(name).file).read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {
        module for module in imported if any(module.startswith(home.replace("/", ".")) for home in parts.HOMES.values())
    }


@every
def test_loss_is_per_example_and_statistics_are_detached(name: str) -> None:
    found = objective(name)
    batch = batch_of(found)
    loss, stats = found.function(batch)
    b = row_count(batch)
    assert loss.shape == (b,) or (found.feedback == "Groups" and loss.shape == batch.reward.shape)
    assert loss.requires_grad
    assert loss.dtype == torch.float64
    assert stats
    for key, value in stats.items():
        assert value.shape[:1] == (b,), key
        assert not value.requires_grad, key
        assert value.isfinite().all(), key


@every
def test_every_setting_changes_the_result(name: str) -> None:
    found = objective(name)
    batch = random_batch(found.feedback)
    others = {setting: another(found, setting) for setting in found.settings}
    for setting, value in others.items():
        at_defaults = same(gradients(found.function, batch), gradients(found.function, batch, **{setting: value}))
        rest = {k: v for k, v in others.items() if k != setting}
        at_others = same(gradients(found.function, batch, **rest), gradients(found.function, batch, **others))
        assert not (at_defaults and at_others), f"{setting} = {value} does nothing"


@every
@every_need
def test_what_is_needed_is_used(name: str, need: str) -> None:
    """A declared need is missed where it is absent, and its values matter."""
    found = objective(name)
    batch = batch_of(found)
    if need in found.spec.needs:
        with pytest.raises((AssertionError, TypeError, AttributeError)):
            found.function(changed(batch, need, lambda _: None))
        moved = changed(batch, need, lambda value: None if value is None else redrawn(value))
        assert not same(gradients(found.function, batch), gradients(found.function, moved))
    else:
        full = random_batch(found.feedback)
        bare = changed(full, need, lambda _: None)
        moved = changed(full, need, redrawn)
        before = gradients(found.function, full)
        assert same(before, gradients(found.function, bare), rtol=0, atol=0), "absent"
        assert same(before, gradients(found.function, moved), rtol=0, atol=0), "other values"


IDLE = [(name, *pair) for name in OBJECTIVES for pair in objective(name).spec.idle]


@pytest.mark.parametrize(("name", "need", "setting"), IDLE)
def test_an_idle_need_is_not_read(name: str, need: str, setting: str) -> None:
    found = objective(name)
    assert need in found.spec.needs
    off = parts.check(found, {setting: type(found.settings[setting].default)(0)})
    assert need not in found.needs(off)
    batch = batch_of(found)
    before, after = (found.function(each, **off)[0] for each in (batch, changed(batch, need, lambda _: None)))
    assert torch.equal(before, after)


@every
@pytest.mark.parametrize("held", [1e6, math.nan])
def test_padding_changes_nothing(name: str, held: float) -> None:
    """Two more steps outside the mask, and huge values or none in all of them: same loss, no gradient there."""
    found = objective(name)
    batch = batch_of(found)

    def padded(tensor: Tensor, inner: int) -> Tensor:
        return torch.nn.functional.pad(tensor.detach(), (0, 0) * inner + (0, 2))

    def filled(x: Tensor, inner: int, mask: Tensor) -> Tensor:
        return x if x.dtype == torch.bool else torch.where(mask[(..., *[None] * inner)], x, held)

    wide = {}
    for n, s in parts_of(batch).items():
        axes = s.mask.dim()  # a state has one more
        longer = apply(s, lambda x, axes=axes: padded(x, x.dim() - axes))
        huge = apply(longer, lambda x, mask=longer.mask: filled(x, x.dim() - mask.dim(), mask))
        wide[n] = replace(huge, logp=huge.logp.requires_grad_())
    wider = with_parts(batch, wide)
    loss, gradient = gradients(found.function, batch)
    wide_loss, wide_gradient = gradients(found.function, wider)
    assert torch.allclose(loss, wide_loss, rtol=1e-12)
    for n, slope in wide_gradient.items():
        mask = wide[n].mask
        assert torch.allclose(slope[..., :-2][mask[..., :-2]], gradient[n][mask[..., :-2]], rtol=1e-12), n
        assert (slope[~mask] == 0).all(), n


@every
def test_order_of_examples_changes_nothing(name: str) -> None:
    found = objective(name)
    batch = batch_of(found)
    order = torch.randperm(row_count(batch), generator=torch.Generator().manual_seed(3))
    assert torch.allclose(found.function(batch)[0][order], found.function(rows(batch, order))[0], rtol=1e-12)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if parts.find("objective", n).feedback == "Groups"])
def test_order_within_a_group_and_absent_members_change_nothing(name: str) -> None:
    found = objective(name)
    batch = batch_of(found)
    order = torch.tensor([2, 0, 1])
    turned = apply(batch, lambda tensor: tensor[:, order])
    loss, again = found.function(batch)[0], found.function(turned)[0]
    assert torch.allclose(loss[:, order] if loss.dim() == 2 else loss, again, rtol=1e-12)
    absent = ~batch.valid
    huge = apply(batch.steps, lambda x: x if x.dtype == torch.bool else torch.where(absent[..., None], 50.0, x))
    garbage = replace(batch, steps=huge, reward=torch.where(absent, 1e6, batch.reward))
    if batch.advantage is not None:
        garbage = replace(garbage, advantage=torch.where(absent, 1e6, batch.advantage))
    assert torch.allclose(loss.sum(), found.function(garbage)[0].sum(), rtol=1e-9)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if parts.find("objective", n).feedback in PAIRED])
def test_labels_are_probabilities(name: str) -> None:
    """A pair told the other way round with 1 - p is the same pair, and no label means p = 1."""
    found = objective(name)
    batch = random_batch(found.feedback)
    assert torch.allclose(found.function(batch)[0], found.function(swapped(batch))[0], rtol=1e-12)
    certain, unsaid = with_prob(batch, torch.ones_like), with_prob(batch, lambda _: None)
    assert torch.allclose(found.function(certain)[0], found.function(unsaid)[0], rtol=1e-12)


@every
def test_one_example_alone_is_itself_in_a_batch_unless_coupled(name: str) -> None:
    found = objective(name)
    batch = batch_of(found)
    together = found.function(batch)[0]
    alone = torch.cat([found.function(rows(batch, slice(i, i + 1)))[0] for i in range(row_count(batch))])
    assert torch.allclose(together, alone, rtol=1e-12) is not found.spec.couples


@every
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    found = objective(name)
    batch = batch_of(found)
    names = list(trained(batch))

    def loss(*logps: Tensor) -> Tensor:
        return found.function(with_logp(batch, dict(zip(names, logps))))[0]

    inputs = tuple(logp.detach().clone().requires_grad_() for logp in trained(batch).values())
    assert torch.autograd.gradcheck(loss, inputs)


@every
@pytest.mark.parametrize("low", EXTREMES)
@pytest.mark.parametrize("high", EXTREMES)
def test_finite_at_the_extremes(name: str, low: float, high: float) -> None:
    """In float32, half of the candidates at one extreme and half at the other."""
    found = objective(name)
    batch = apply(batch_of(found), lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def filled(logp: Tensor, flip: bool) -> Tensor:
        even = torch.arange(len(logp)) % 2 == int(flip)
        shape = (-1,) + (1,) * (logp.dim() - 1)
        return torch.where(even.view(shape), low, high).expand_as(logp).clone().requires_grad_()

    extreme = with_logp(batch, {n: filled(logp, n.endswith("rejected")) for n, logp in trained(batch).items()})
    loss, gradient = gradients(found.function, extreme)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert all(each.isfinite().all() for each in gradient.values())


@every
def test_finite_at_policy_equals_reference(name: str) -> None:
    """Where every log-ratio is zero, nothing may be divided by one."""
    found = objective(name)
    batch = batch_of(found)
    at_reference = {}
    for n, s in parts_of(batch).items():
        ref, old = (None if x is None else s.logp.detach().clone() for x in (s.ref, s.old))
        at_reference[n] = replace(s, ref=ref, old=old)
    batch = with_parts(batch, at_reference)
    loss, gradient = gradients(found.function, batch)
    assert loss.isfinite().all()
    assert all(each.isfinite().all() for each in gradient.values())


def test_no_two_objectives_are_equal_by_default() -> None:
    found = [objective(name) for name in OBJECTIVES]
    for i, left in enumerate(found):
        for right in found[:i]:
            if left.feedback == right.feedback:
                batch = random_batch(left.feedback)
                results = (gradients(each.function, batch) for each in (left, right))
                assert not same(*results), f"{left.name} = {right.name}"


@every
def test_one_step_lowers_the_loss_of_the_tabular_policy(name: str) -> None:
    found = objective(name)
    policy, reference = (Tabular.random(3, vocabulary=3, length=2, seed=seed) for seed in (1, 2))
    batch = batch_of(found, b=6, t=2)
    prompts = torch.arange(6) % 3

    def answered(steps: Steps, seed: int) -> Steps:
        k = steps.logp[0, ..., 0].numel()
        answers = policy.sample(prompts, k, seed=seed).flatten(0, 1)
        asked = prompts.repeat_interleave(k)
        fresh = policy.steps(asked, answers, reference)
        shape = (*steps.logp.shape[:-1], 2)
        given, time = ("old", "value", "reward", "entropy", "kl", "hidden", "key_rank"), steps.mask.dim() - 1
        kept = {n: x.narrow(time, 0, 2) for n in given if (x := getattr(steps, n)) is not None}
        ref = None if steps.ref is None else fresh.ref.view(shape)
        return Steps(fresh.logp.view(shape), fresh.mask.view(shape), ref=ref, **kept)

    def loss() -> Tensor:
        sides = {n: answered(s, seed) for seed, (n, s) in enumerate(parts_of(batch).items())}
        return found.function(with_parts(batch, sides))[0].mean()

    before = loss()
    before.backward()
    gradient = policy.logits.grad
    assert gradient.norm() > 0
    with torch.no_grad():
        policy.logits -= 1e-3 * gradient / gradient.norm()
    assert loss() < before
