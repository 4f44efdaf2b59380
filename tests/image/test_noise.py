"""The arithmetic of denoising against slow float64 twins: one sample at a time, torch.distributions for densities."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch.distributions import Normal, kl_divergence

from stages.errors import UserError
from stages.policies.image import noise, seeds
from stages.policies.image.schedule import Schedule

PREDICTIONS = ("epsilon", "v_prediction", "sample")
SHAPE = (2, 3, 3)


def scheduler(prediction: str = "epsilon", cls=DDIMScheduler, **extra):
    settings = {"beta_start": 1e-4, "beta_end": 0.02, "clip_sample": False, "prediction_type": prediction}
    return cls(**settings, timestep_spacing="trailing", **extra)


def schedule(prediction: str = "epsilon") -> Schedule:
    made = FlowMatchEulerDiscreteScheduler() if prediction == "flow" else scheduler(prediction)
    return Schedule(made, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(prediction: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A level for each of n images, some way from the ends."""
    at = torch.linspace(0.2, 0.9, n, dtype=torch.float64)
    signal, sigma = (1 - at, at) if prediction == "flow" else ((1 - at).sqrt(), at.sqrt())
    return signal.view(n, 1, 1, 1), sigma.view(n, 1, 1, 1)


@pytest.mark.parametrize("prediction", noise.PREDICTIONS)
def test_the_target_gives_back_image_and_noise(prediction):
    x0, z, at = randn(4, *SHAPE), randn(4, *SHAPE, seed=1), level(prediction, 4)
    x, out = noise.corrupt(x0, z, at), noise.target(x0, z, at, prediction)
    torch.testing.assert_close(noise.clean(x, out, at, prediction), x0)
    torch.testing.assert_close(noise.residual(x, out, at, prediction), z)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_noising_and_target_are_the_schedulers(prediction):
    made, x0, z = scheduler(prediction), randn(5, *SHAPE).float(), randn(5, *SHAPE, seed=1).float()
    t = torch.tensor([0, 3, 250, 800, 999])
    ab = made.alphas_cumprod[t].view(5, 1, 1, 1)
    at = (ab.sqrt(), (1 - ab).sqrt())
    torch.testing.assert_close(noise.corrupt(x0, z, at), made.add_noise(x0, z, t))
    wanted = {"epsilon": z, "sample": x0}.get(prediction, made.get_velocity(x0, z, t))
    torch.testing.assert_close(noise.target(x0, z, at, prediction), wanted)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_steps_are_the_schedulers(prediction, eta):
    """Every step of the grid, mean and spread, against diffusers' own step with its noise at zero and at one."""
    made, steps = scheduler(prediction), 10
    made.set_timesteps(steps)
    grid = schedule(prediction).grid(steps, eta)
    assert grid.time.tolist() == made.timesteps.tolist()
    x, out = randn(1, *SHAPE), randn(1, *SHAPE, seed=1)
    for i, t in enumerate(made.timesteps):
        mean, ahead = (
            made.step(out, t, x, eta=eta, variance_noise=torch.full_like(x, z)).prev_sample for z in (0.0, 1.0)
        )
        torch.testing.assert_close(grid.mean(x, out, i), mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grid.std[i].expand_as(x), ahead - mean, rtol=1e-5, atol=1e-6)


def test_a_full_eta_has_the_variance_of_the_ddpm_posterior():
    """Consecutive levels: beta_t (1 - ab[t-1]) / (1 - ab[t]), from the betas alone."""
    made = scheduler(cls=DDPMScheduler)
    beta = made.betas.double()
    ab = torch.cumprod(1 - beta, 0)
    one = torch.ones((), dtype=torch.float64)
    for t in (1, 10, 500, 999):
        now, then = (ab[t].sqrt(), (1 - ab[t]).sqrt()), (ab[t - 1].sqrt(), (1 - ab[t - 1]).sqrt())
        _, std = noise.ddim_step(one, one, now, then, 1.0, "epsilon")
        assert float(std) ** 2 == pytest.approx(float(beta[t] * (1 - ab[t - 1]) / (1 - ab[t])), rel=1e-9)


def test_a_full_eta_has_the_mean_of_the_ddpm_posterior():
    """The posterior of x[t-1] given x[t] and x0, as DDPM's paper writes it."""
    beta = scheduler().betas.double()
    ab = torch.cumprod(1 - beta, 0)
    x0, z, t = randn(1, *SHAPE), randn(1, *SHAPE, seed=1), 400
    x = ab[t].sqrt() * x0 + (1 - ab[t]).sqrt() * z
    wanted = ab[t - 1].sqrt() * beta[t] / (1 - ab[t]) * x0
    wanted = wanted + (1 - beta[t]).sqrt() * (1 - ab[t - 1]) / (1 - ab[t]) * x
    now, then = (ab[t].sqrt(), (1 - ab[t]).sqrt()), (ab[t - 1].sqrt(), (1 - ab[t - 1]).sqrt())
    torch.testing.assert_close(noise.ddim_step(x, z, now, then, 1.0, "epsilon")[0], wanted)


def test_log_prob_is_the_mean_of_torchs():
    x, mean, std = randn(3, *SHAPE), randn(3, *SHAPE, seed=1), torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    got = noise.gaussian_logp(x, mean, std)
    for i in range(3):
        each = Normal(mean[i], std[i]).log_prob(x[i])
        assert float(got[i]) == pytest.approx(float(each.mean()), rel=1e-12)
        assert float(got[i]) * each.numel() == pytest.approx(float(each.sum()), rel=1e-12)  # sum = D * mean


def test_kl_and_entropy_are_the_means_of_torchs():
    a, b, std = randn(3, *SHAPE), randn(3, *SHAPE, seed=1), torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    got, spread = noise.gaussian_kl(a, b, std), noise.gaussian_entropy(std)
    for i in range(3):
        p, q = Normal(a[i], std[i]), Normal(b[i], std[i])
        assert float(got[i]) == pytest.approx(float(kl_divergence(p, q).mean()), rel=1e-12)
        assert float(spread[i]) == pytest.approx(float(p.entropy().mean()), rel=1e-12)


def test_a_step_without_spread_gives_zero_and_no_nan():
    mean = randn(2, *SHAPE).requires_grad_()
    std = torch.tensor([0.0, 0.5], dtype=torch.float64)
    x = randn(2, *SHAPE, seed=1)
    logp, kl = noise.gaussian_logp(x, mean, std), noise.gaussian_kl(mean, x + 1, std)
    (logp.sum() + kl.sum()).backward()
    assert float(logp[0].detach()) == 0
    assert float(kl[0].detach()) == 0
    assert mean.grad.isfinite().all()
    assert (mean.grad[0] == 0).all()
    assert (mean.grad[1] != 0).all()


@pytest.mark.parametrize("prediction", noise.PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 7, 10])
def test_only_the_last_step_of_a_random_sampler_is_certain(prediction, steps):
    made = schedule(prediction)
    assert made.grid(steps, 0.7).mask.tolist() == [True] * (steps - 1) + [False]
    assert not made.grid(steps, 0.0).mask.any()


@pytest.mark.parametrize("prediction", noise.PREDICTIONS)
def test_the_last_step_finishes_the_image(prediction):
    made = schedule(prediction)
    for eta in (0.0, 0.7):
        grid = made.grid(5, eta)
        x0, z = randn(2, *SHAPE), randn(2, *SHAPE, seed=1)
        x = noise.corrupt(x0, z, grid.start)
        out = noise.target(x0, z, grid.start, prediction)
        torch.testing.assert_close(grid.mean(x, out, 4), x0)


# -------------------------------------------------------------------------------------------------- flow


def test_flow_steps_are_the_cards_equation():
    """The mean is x (1 + std^2/(2s) ds) + v (1 + std^2 (1-s)/(2s)) ds, with s_1 in the place of s = 1."""
    steps, a = 10, 0.7
    grid = schedule("flow").grid(steps, a)
    s = [1 - i / steps for i in range(steps + 1)]
    x, v = randn(1, *SHAPE), randn(1, *SHAPE, seed=1)
    for i in range(steps - 1):
        ds = s[i + 1] - s[i]
        std = a * math.sqrt(s[i] / (1 - (s[1] if i == 0 else s[i])))
        mean = x * (1 + std**2 / (2 * s[i]) * ds) + v * (1 + std**2 * (1 - s[i]) / (2 * s[i])) * ds
        torch.testing.assert_close(grid.mean(x, v, i), mean)
        assert float(grid.std[i]) == pytest.approx(std * math.sqrt(-ds), rel=1e-9)
        assert float(grid.time[i]) == pytest.approx(1000 * s[i])


def test_flow_without_noise_is_the_euler_ode():
    grid, x, v = schedule("flow").grid(4, 0.0), randn(1, *SHAPE), randn(1, *SHAPE, seed=1)
    for i in range(4):
        torch.testing.assert_close(grid.mean(x, v, i), x - 0.25 * v)


def test_the_two_forms_of_the_flow_kl_agree():
    """Of the means, and (-ds)/2 (1/std + std (1-s)/(2s))^2 mean (v - v_ref)^2 of the velocities."""
    a, v, other, x = 0.7, randn(1, *SHAPE), randn(1, *SHAPE, seed=1), randn(1, *SHAPE, seed=2)
    s, then = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    spread = noise.flow_spread(s, a, then)
    (one, std), (two, _) = (noise.flow_step(x, w, s, then, spread) for w in (v, other))
    by_mean = noise.gaussian_kl(one, two, std)
    by_velocity = (s - then) / 2 * (1 / spread + spread * (1 - s) / (2 * s)) ** 2 * (v - other).square().mean()
    assert float(by_mean) == pytest.approx(float(by_velocity), rel=1e-9)


def test_the_flow_sde_keeps_the_marginals_of_a_gaussian():
    """Data N(m, c^2): x_s is N((1-s) m, (1-s)^2 c^2 + s^2), with velocity E[noise - x0 | x_s] known exactly.

    A linear step maps a Gaussian to a Gaussian, so that its mean and variance are followed without sampling. The step
    from s = 1 adds a^4/4 too much variance however small it is; the drift wears it off: at s <= 0.5 less than one
    per cent is left.
    """
    m, c, steps = 0.7, 0.5, 2000
    grid = noise.flow_grid(steps)
    mean, variance = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for i in range(steps - 1):
        s, then = grid[i], grid[i + 1]
        total = (1 - s) ** 2 * c**2 + s**2
        slope = (s - (1 - s) * c**2) / total  # of the velocity: Cov(noise - x0, x_s) / Var(x_s)
        spread = noise.flow_spread(s, 0.7, grid[1])

        def step(x, s=s, then=then, slope=slope, spread=spread):
            return noise.flow_step(x, -m + slope * (x - (1 - s) * m), s, then, spread)

        moved, std = step(mean)
        gain = step(mean + 1)[0] - moved
        mean, variance = moved, gain**2 * variance + std**2
        assert float(mean) == pytest.approx(float((1 - then) * m), abs=0.01)
        assert i or float(variance) == pytest.approx(1 + 0.7**4 / 4, abs=0.001)
        assert then > 0.5 or float(variance) == pytest.approx(float((1 - then) ** 2 * c**2 + then**2), abs=0.01)


# -------------------------------------------------------------------------------------------------- surrogates, draws


def test_weights_are_the_cards():
    m, s = 0.3, 0.4
    wanted = {
        "half": m / 2,
        "uniform": m,
        "t": s * m,
        "t2": s * s * m,
        "huber": s * (math.sqrt(m + 1e-10) - 1e-5),
        "ghuber": s * ((m + 1e-10) ** 0.25 - 1e-10**0.25) / 0.25,
    }
    error, at = torch.tensor(m, dtype=torch.float64), torch.tensor(s, dtype=torch.float64)
    for weight, value in wanted.items():
        assert float(noise.weighted(error, at, weight)) == pytest.approx(-value, rel=1e-9)


def test_ghuber_has_the_cards_slope():
    m = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    noise.weighted(m, torch.tensor(0.4, dtype=torch.float64), "ghuber").backward()
    assert float(m.grad) == pytest.approx(-0.4 * (0.3 + 1e-10) ** -0.75, rel=1e-9)


def test_diffusion_draws_are_uniform_over_all_timesteps():
    time, s, (signal, sigma) = schedule().draw((torch.arange(4000) + 0.5) / 4000)
    assert torch.bincount(time, minlength=1000).tolist() == [4] * 1000
    torch.testing.assert_close(signal**2 + sigma**2, torch.ones_like(signal))
    torch.testing.assert_close(s, (time + 1).double() / 1000)


def test_flow_draws_are_logit_normal_and_never_too_small():
    where = (torch.arange(10000) + 0.5) / 10000
    time, s, (signal, sigma) = schedule("flow").draw(where)
    logits = torch.logit(s)
    assert float(logits.mean()) == pytest.approx(0, abs=1e-3)
    assert float(logits.std()) == pytest.approx(1, abs=1e-2)
    torch.testing.assert_close(signal, 1 - s)
    torch.testing.assert_close(time, 1000 * sigma)
    assert float(schedule("flow").draw(torch.tensor([1e-9]))[1]) == 0.01


def test_levels_spread_evenly_and_belong_to_the_draw():
    where, z, coin = seeds.levels(["a", "b", "a"], 4, SHAPE)
    assert torch.equal(where[0], where[2])
    assert torch.equal(z[0], z[2])
    assert coin[0] == coin[2]
    assert not torch.equal(z[0], z[1])
    assert [int(v) for v in (where * 4).flatten()] == [0, 1, 2, 3] * 3
    alone = seeds.levels(["b"], 4, SHAPE)
    assert torch.equal(alone[1][0], z[1])


def test_a_row_of_noise_is_its_names():
    both = seeds.normals(["x", "y"], SHAPE)
    assert torch.equal(both[1], seeds.normals(["y"], SHAPE)[0])
    assert not torch.equal(both[0], both[1])


def test_a_shifted_grid_keeps_its_ends():
    s = noise.flow_grid(4, 3.0)
    assert s.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_a_model_that_predicts_something_else_is_refused():
    with pytest.raises(UserError, match="prediction_type 'score' is not supported"):
        schedule("score")
