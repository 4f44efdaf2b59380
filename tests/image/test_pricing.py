"""Prices beside a reference, and pictures as blocks of pixels."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from stages import images
from stages.batches import Item, Steps
from stages.policies.image import Policy, Settings, tiny
from stages.policies.image.codec import Codec
from stages.records import Completion, Message, Prompt
from tests.image.test_policy import KINDS, Small, bare, gradient, item, sampled

PRICES = [
    {"likelihood": "elbo", "levels": 3},
    {"likelihood": "trajectory", "trajectory_steps": "all"},
    {"likelihood": "trajectory", "trajectory_steps": "one"},
]
every_price = pytest.mark.parametrize("price", PRICES, ids=["elbo", "all steps", "one step"])
every_kind = pytest.mark.parametrize("kind", KINDS)


def two(kind: str, price: dict) -> tuple[Policy, Policy, list[Item]]:
    """A policy, another one, and samples of the first."""
    policy, other = (bare(kind, model=Small(seed), **price) for seed in (0, 1))
    return policy, other, sampled(bare(kind, likelihood="trajectory"))


# -------------------------------------------------------------------------------------------------- a reference


@every_kind
@every_price
def test_ref_is_what_the_reference_says_itself(kind, price):
    policy, other, asked = two(kind, price)
    steps, alone = policy.log_probs(asked, reference=other), policy.log_probs(asked)
    torch.testing.assert_close(steps.ref, other.log_probs(asked).logp.detach())
    torch.testing.assert_close(steps.logp, alone.logp)
    assert torch.equal(steps.mask, alone.mask)
    assert (alone.ref, alone.kl) == (None, None)
    assert not steps.ref.requires_grad
    assert not torch.allclose(steps.ref, steps.logp)


@every_kind
@every_price
def test_kl_is_positive_and_0_at_the_reference(kind, price):
    policy, other, asked = two(kind, price)
    apart, same = policy.log_probs(asked, reference=other), policy.log_probs(asked, reference=bare(kind, **price))
    assert apart.kl.shape == apart.logp.shape
    assert (apart.kl[apart.mask] > 0).all()
    assert (apart.kl[~apart.mask] == 0).all()
    assert (same.kl == 0).all()
    assert torch.equal(same.ref, same.logp.detach())
    assert (gradient(policy, same.kl.sum()) == 0).all()
    assert (gradient(policy, apart.kl.sum()) != 0).any()
    assert all(p.grad is None for p in other.parameters().values())


def grid_means(policy: Policy, asked: list[Item]) -> torch.Tensor:
    """Means `[b,r,c,h,w]` of the random steps of stored trajectories, one image and one step at a time."""
    grid, found = policy.schedule.grid(policy.steps, policy.noise), []
    for one in asked:
        path = images.unpack(one.completion.latents, (policy.steps + 1, *policy.shape)).double()
        condition = policy.denoiser.condition([one.messages[-1].content], 1.0)
        for i in grid.mask.nonzero().flatten().tolist():
            with torch.no_grad():
                out = policy.denoiser(path[i][None], grid.time[i][None], condition, 1.0)
                found.append(grid.mean(path[i][None], out, i)[0])
    return torch.stack(found).unflatten(0, (len(asked), -1))


@every_kind
def test_kl_of_trajectories_is_that_of_two_gaussians(kind):
    policy, other, asked = two(kind, PRICES[1])
    steps: Steps = policy.log_probs(asked, reference=other)
    std = policy.schedule.grid(policy.steps, policy.noise).std
    ours, theirs = grid_means(policy, asked), grid_means(other, asked)
    for row in range(len(asked)):
        for i in range(ours.shape[1]):
            p, q = (Normal(mean[row, i], std[i]) for mean in (ours, theirs))
            assert float(steps.kl[row, i].detach()) == pytest.approx(float(kl_divergence(p, q).mean()), rel=1e-5)


@every_kind
def test_kl_of_one_step_is_that_of_the_step_it_priced(kind):
    policy, other, asked = two(kind, PRICES[1])
    every = policy.log_probs(asked, reference=other)
    policy, other, _ = two(kind, PRICES[2])
    one = policy.log_probs(asked, reference=other)
    for row in range(len(asked)):
        at = int((every.logp[row] - one.logp[row]).abs().argmin())
        for name in ("logp", "ref", "kl"):
            assert float(getattr(one, name)[row].detach()) == pytest.approx(
                float(getattr(every, name)[row, at].detach())
            )


@every_kind
def test_kl_of_the_surrogate_is_the_distance_of_the_two_outputs(kind):
    """At log-probs of -m/2 it is twice the KL of two Gaussians of variance 1 around the outputs."""
    policy, other = (bare(kind, model=Small(seed)) for seed in (0, 1))
    asked = [item("a", "zero", "x"), item("b", "two", "y")]
    seen: list[torch.Tensor] = []
    for one in (policy, other):
        one.model.register_forward_hook(lambda model, given, out: seen.append(out.detach()))
    steps = policy.log_probs(asked, reference=other)
    torch.testing.assert_close(steps.kl[:, 0].detach(), (seen[0] - seen[1]).square().mean((1, 2, 3)).float())


def test_prices_beside_a_reference_do_not_depend_on_the_batch():
    policy, other, asked = two("flow", PRICES[1])
    whole, alone = policy.log_probs(asked, reference=other), policy.log_probs(asked[2:3], reference=other)
    for name in ("logp", "ref", "kl"):
        torch.testing.assert_close(getattr(alone, name)[0], getattr(whole, name)[2])


# -------------------------------------------------------------------------------------------------- blocks of pixels


@pytest.mark.parametrize(("channels", "side", "patch"), [(1, 8, 2), (3, 32, 4), (3, 16, 1)])
def test_blocks_of_pixels_are_exact_both_ways(channels, side, patch):
    shape = (channels * patch**2, side // patch, side // patch)
    codec = Codec(None, shape, torch.float32, torch.device("cpu"), patch=patch)
    assert (codec.channels, codec.side) == (channels, (side, side))
    pixels = torch.randint(0, 256, (2, channels, side, side), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    coded = codec.encode([images.encode(one) for one in pixels])
    assert coded.shape == (2, *shape)
    assert torch.equal(codec.decode(coded), torch.stack([images.decode(images.encode(one)) for one in pixels]))
    torch.testing.assert_close(codec.decode(coded), pixels, atol=1e-6, rtol=0)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(codec._latents(codec.decode(latents)), latents)


def test_a_block_is_the_pixels_of_one_place():
    codec = Codec(None, (4, 2, 2), torch.float32, torch.device("cpu"), patch=2)
    pixels = torch.zeros(1, 4, 4)
    pixels[0, 2:, :2] = torch.tensor([[0.2, 0.4], [0.6, 0.8]])  # lower left
    coded = codec._latents(pixels[None])[0]
    torch.testing.assert_close(coded[:, 1, 0], torch.tensor([0.1, 0.2, 0.3, 0.4]))  # scaled by 1/2
    assert float(coded.sum()) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """A UNet for 16 x 16 grey pictures that works on 8 x 8 blocks of 2 x 2 pixels."""
    folder = tmp_path_factory.mktemp("blocks") / "model"
    tiny.pipeline(folder, channels=4, blocks=(8, 8), width=8, prediction_type="v_prediction")
    return folder


ASKED = [Prompt(id="p", messages=(Message(role="user", content="a handwritten seven"),))]


@pytest.mark.parametrize("likelihood", ["elbo", "trajectory"])
def test_a_denoiser_of_blocks_samples_and_prices_pictures(blocks, likelihood):
    settings = Settings(patch=2, steps=3, likelihood=likelihood, trajectory_steps="all")
    policy = Policy.load(blocks, settings, trainable=True)
    assert policy.shape == (4, 8, 8)
    found = policy.sample(ASKED, 2, seed=0)
    assert {images.decode(c.image).shape for c in found} == {(1, 16, 16)}
    asked = [Item(c.id, ASKED[0].messages, Completion(image=c.image, latents=c.latents), f"d{c.id}") for c in found]
    steps = policy.log_probs(asked, reference=Policy.load(blocks, settings))
    assert steps.logp.isfinite().all()
    assert steps.mask.any()
    torch.testing.assert_close(steps.kl, torch.zeros_like(steps.kl), atol=1e-6, rtol=0)
    if likelihood == "trajectory":
        assert steps.logp[0].tolist() == pytest.approx(found[0].logps, abs=1e-4)
    (-steps.logp[steps.mask].mean()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters().values())


def test_a_reward_reaches_the_weights_through_the_blocks(blocks):
    policy = Policy.load(blocks, Settings(patch=2, steps=3), trainable=True)
    pixels = policy.differentiable_sample(ASKED, seed=0, k=2, grad_steps=1)
    assert pixels.shape == (2, 1, 16, 16)
    pixels.mean().backward()
    assert sum(float(p.grad.abs().sum()) for p in policy.parameters().values() if p.grad is not None) > 0
