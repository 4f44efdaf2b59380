"""One battery for every objective on the reward's own gradient (`Pathwise`), on a toy and on a denoiser."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stages import parts
from stages.batches import Pathwise
from stages.online import Online
from stages.optimize.objectives.alignprop import alignprop
from stages.optimize.objectives.draft import draft
from stages.pathwise import pathwise
from stages.policies.image import Policy, sampling, seeds
from stages.samples import seed_of
from tests.contract.test_objectives import another
from tests.image.test_policy import PROMPTS, SHAPE, bare, gradient, ids

PATHWISE = [name for name in parts.names("objective") if parts.find("objective", name).feedback == "Pathwise"]
STEPS, ROWS = 5, 6
FULL = {"draft": {"k": STEPS}, "alignprop": {"mean": 1.0, "spread": 0.0}}  # all steps carry a gradient
every = pytest.mark.parametrize("name", PATHWISE)


def run(name: str, batch: Pathwise, **settings) -> tuple[Tensor, dict[str, Tensor]]:
    return parts.find("objective", name).function(batch, **settings)


class Toy:
    """Five steps x' = a x + b tanh(x) + noise in float64: two weights, six images of one pixel."""

    def __init__(self, a: float = 0.9, b: float = 0.3) -> None:
        self.theta = torch.tensor([a, b], dtype=torch.float64, requires_grad=True)

    def step(self, x: Tensor, noise: torch.Generator) -> Tensor:
        x = self.theta[0] * x + self.theta[1] * x.tanh()
        return x + 0.1 * torch.randn(x.shape, generator=noise, dtype=torch.float64)

    def sample(self, grad_steps: int, repeats: int = 0) -> Tensor:
        noise = torch.Generator().manual_seed(0)
        x = torch.randn(ROWS, 1, 1, 1, generator=noise, dtype=torch.float64)
        for i in range(STEPS):
            with torch.set_grad_enabled(i >= STEPS - grad_steps):
                x = self.step(x, noise)
        if not repeats:
            return x
        again = x.detach().repeat(repeats, 1, 1, 1)
        return self.step(again + 0.5 * torch.randn(again.shape, generator=noise, dtype=torch.float64), noise)

    def batch(self, reward: Callable[[Tensor], Tensor] | None = None, name: str = "a step") -> Pathwise:
        return Pathwise(self.sample, reward or (lambda x: x.sin().mean((1, 2, 3))), steps=STEPS, name=name)

    def slope(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.theta)[0]


@every
def test_the_spec_says_that_it_samples_images_itself(name):
    spec = parts.find("objective", name).spec
    assert spec.online
    assert spec.families == ("image",)
    assert spec.needs == ()
    assert name in FULL, "say which settings give all steps a gradient"


@every
def test_loss_is_minus_the_reward_of_each_image_whatever_is_differentiated(name):
    toy = Toy()
    wanted = toy.batch().reward(toy.sample(0))
    for settings in ({}, FULL[name]):
        loss, stats = run(name, toy.batch(), **settings)
        assert loss.shape == (ROWS,)
        torch.testing.assert_close(-loss.detach(), wanted)
        torch.testing.assert_close(stats["reward"], wanted)
        assert stats["backprop_steps"].shape == (ROWS,)
        assert not any(value.requires_grad for value in stats.values())


@pytest.mark.parametrize(("name", "setting"), [(n, s) for n in PATHWISE for s in parts.find("objective", n).settings])
def test_every_setting_changes_a_gradient(name, setting):
    found, toy = parts.find("objective", name), Toy()
    other = {setting: another(found, setting)}
    slopes = [
        torch.stack([toy.slope(run(name, toy.batch(name=str(i)), **settings)[0].sum()) for i in range(20)])
        for settings in ({}, other)
    ]
    assert not torch.allclose(*slopes), other


@every
def test_gradient_matches_finite_differences(name):
    toy, step = Toy(), 1e-6
    found = toy.slope(run(name, toy.batch(), **FULL[name])[0].mean())
    for i in range(2):
        ends = []
        for sign in (1, -1):
            moved = Toy()
            moved.theta.data[i] += sign * step
            ends.append(float(run(name, moved.batch(), **FULL[name])[0].detach().mean()))
        assert float(found[i]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


@every
def test_one_image_alone_equals_itself_in_a_batch(name):
    toy = Toy()
    whole, _ = run(name, toy.batch())
    alone = Pathwise(lambda grad_steps: toy.sample(grad_steps)[2:3], toy.batch().reward, steps=STEPS, name="a step")
    torch.testing.assert_close(run(name, alone)[0], whole[2:3])
    torch.testing.assert_close(toy.slope(run(name, alone)[0].sum()), toy.slope(whole[2]))


@every
def test_a_constant_reward_has_no_gradient(name):
    toy = Toy()
    loss, _ = run(name, toy.batch(lambda x: 0.5 + 0 * x.mean((1, 2, 3))))
    assert (loss == -0.5).all()
    assert (toy.slope(loss.sum()) == 0).all()
    flat, _ = run(name, toy.batch(lambda x: torch.full((len(x),), 0.5)))
    assert not flat.requires_grad, "a reward that is no function of the image"


@every
def test_a_step_down_the_gradient_raises_the_reward(name):
    toy = Toy()
    before, _ = run(name, toy.batch())
    toy.theta.data -= 0.05 * toy.slope(before.sum())
    assert float(run(name, toy.batch())[0].detach().sum()) < float(before.detach().sum())


# -------------------------------------------------------------------------------------------------- a denoiser


def of(policy: Policy, name: str = "a step") -> Pathwise:
    """What online learning hands over, with brightness as the reward."""
    asked = Online(rewards={"brightness": {}}, num_generations=2)
    return pathwise(policy, PROMPTS, asked, seed=0, epoch=0, name=name)


@every
@pytest.mark.parametrize("kind", ["v_prediction", "flow"])
def test_all_steps_with_a_gradient_are_the_plain_unrolled_sampler(name, kind):
    policy = bare(kind)
    loss, stats = run(name, of(policy), **FULL[name])
    asked = sampling.rows(PROMPTS, 2, seed_of(0, 0), shared_start=False)
    x, z = seeds.normals(asked.starts, SHAPE).double(), seeds.normals(asked.names, (STEPS, *SHAPE)).double()
    grid = policy.schedule.grid(STEPS, policy.noise)
    for i in range(STEPS):
        out = policy.model(x, grid.time[i].expand(len(x)), ids(asked.captions))
        x = grid.mean(x, out, i) + grid.std[i] * z[:, i]
    wanted = -(x.clamp(-1, 1).mean((1, 2, 3)) + 1) / 2  # brightness on [0, 1], as the panel scales it
    torch.testing.assert_close(loss, wanted)
    found = gradient(policy, loss.sum())
    torch.testing.assert_close(found, gradient(policy, wanted.sum()))
    assert found.abs().sum() > 0
    assert (stats["backprop_steps"] == STEPS).all()


@pytest.mark.parametrize(("mean", "k"), [(0.0, 1), (0.4, 2), (0.6, 3), (1.0, 5)])
def test_without_spread_alignprop_is_draft_with_the_same_k(mean, k):
    policy = bare("v_prediction")
    ours, one = alignprop(of(policy), mean=mean, spread=0.0)
    theirs, other = draft(of(policy), k=k)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient(policy, ours.sum()), gradient(policy, theirs.sum()))
    assert torch.equal(one["backprop_steps"], other["backprop_steps"])


def test_low_variance_draft_is_the_mean_over_fresh_noisings_of_the_same_images():
    policy = bare("v_prediction")
    loss, stats = draft(of(policy), k=STEPS, repeats=3)
    batch = of(policy)
    rewards = batch.reward(batch.sample(1, 3)).view(3, len(PROMPTS) * 2)
    torch.testing.assert_close(loss, -rewards.mean(0))
    torch.testing.assert_close(gradient(policy, loss.sum()), gradient(policy, -rewards.sum() / 3))
    assert (stats["backprop_steps"] == 1).all()
    assert float(rewards.detach().std(0).min()) > 0, "every noising is another one"


def test_the_expected_gradient_of_low_variance_draft_does_not_depend_on_the_number_of_noisings():
    """Means over many batches of one and of four noisings agree within four standard errors; four spread less."""

    def slopes(repeats: int) -> Tensor:
        toy = Toy()
        x = toy.sample(0)
        found = []
        for i in range(400):
            noise = torch.Generator().manual_seed(i)

            def again(grad_steps, count, x=x, noise=noise):
                many = x.repeat(count, 1, 1, 1)
                return toy.step(many + 0.5 * torch.randn(many.shape, generator=noise, dtype=torch.float64), noise)

            batch = Pathwise(again, toy.batch().reward, steps=STEPS, name=str(i))
            found.append(toy.slope(draft(batch, repeats=repeats)[0].mean()))
        return torch.stack(found)

    one, four = slopes(1), slopes(4)
    error = (one.var(0) / 400 + four.var(0) / 400).sqrt()
    assert ((one.mean(0) - four.mean(0)).abs() < 4 * error).all()
    assert (four.std(0) < 0.7 * one.std(0)).all()


def test_more_steps_than_the_sampler_has_are_all_of_them():
    policy = bare("v_prediction")
    many, stats = draft(of(policy), k=50)
    assert (stats["backprop_steps"] == STEPS).all()
    assert torch.equal(gradient(policy, many.sum()), gradient(policy, draft(of(policy), k=STEPS)[0].sum()))


def counts(names: range, steps: int, **settings) -> list[int]:
    """How many steps alignprop differentiates, by the name of the step."""
    batches = [Pathwise(lambda g: torch.ones(1), lambda x: x, steps=steps, name=str(i)) for i in names]
    return [int(alignprop(batch, **settings)[1]["backprop_steps"]) for batch in batches]


def test_the_number_of_steps_is_drawn_from_the_name_of_the_step():
    drawn = counts(range(400), 50)
    assert drawn == counts(range(400), 50)
    assert drawn != counts(range(400, 800), 50)
    assert sum(drawn) / 400 == pytest.approx(8, abs=0.8), "8 of 50 with a deviation of 5, cut off below 1"
    assert min(drawn) == 1
    even = counts(range(400), 5, truncation="uniform")
    assert {even.count(k) > 50 for k in range(1, 6)} == {True}
