"""The image policy on a bare denoiser, against slow float64 twins."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, PixArtTransformer2DModel
from torch import nn
from torch.distributions import Normal, kl_divergence

from stages import images
from stages.batches import Item
from stages.errors import UserError
from stages.policies.image import Policy, Settings, lora, noise, sampling, seeds
from stages.records import Completion, Message, Prompt

SHAPE = (1, 4, 4)
WORDS = ["", "zero", "one", "two", "three"]
KINDS = ("epsilon", "v_prediction", "flow")


class Small(nn.Module):
    """A denoiser of class ids: two layers, a time input, float64."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(len(WORDS), 16)
        self.inner, self.outer = nn.Linear(17, 24), nn.Linear(24, 16)
        self.double()

    def forward(self, x, t, encoder_hidden_states):
        said = x.flatten(1) + self.words(encoder_hidden_states)
        hidden = torch.tanh(self.inner(torch.cat([said, t[:, None].to(x) / 1000], 1)))
        return self.outer(hidden).view_as(x)


def ids(captions) -> torch.Tensor:
    return torch.tensor([WORDS.index(caption) for caption in captions])


def scheduler(kind: str = "epsilon"):
    if kind == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, prediction_type=kind)


def bare(kind: str = "epsilon", *, model: nn.Module | None = None, **settings) -> Policy:
    given = Settings(**{"steps": 5, **settings})
    return Policy(model or Small(), scheduler(kind), settings=given, shape=SHAPE, embed=ids)


def ask(*words: str) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message(role="user", content=word),)) for i, word in enumerate(words)]


PROMPTS = ask("zero", "two", "three")


def item(name: str, word: str, draw: str, *, latents: str = "") -> Item:
    """An image that its name decides."""
    pixels = seeds.normals([name], SHAPE)[0].clamp(-1, 1)
    said = Completion(image=images.encode(pixels), latents=latents)
    return Item(name, (Message(role="user", content=word),), said, draw)


def sampled(policy: Policy, prompts=PROMPTS, k: int = 2, draw: str = "d") -> list[Item]:
    """What the policy sampled, as items to price."""
    found = policy.sample(prompts, k, seed=3)
    asked = [prompt for prompt in prompts for _ in range(k)]
    return [
        Item(c.id, p.messages, Completion(image=c.image, latents=c.latents), f"{draw}{i}")
        for i, (p, c) in enumerate(zip(asked, found, strict=True))
    ]


def gradient(policy: Policy, value: torch.Tensor) -> torch.Tensor:
    found = torch.autograd.grad(value, list(policy.parameters().values()), allow_unused=True)
    parts = zip(found, policy.parameters().values(), strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in parts])


# -------------------------------------------------------------------------------------------------- elbo


@pytest.mark.parametrize("kind", KINDS)
def test_elbo_is_minus_half_the_mean_squared_error(kind):
    """One image at a time: its draw's level and noise, the forward process, the prediction target."""
    policy, alphas = bare(kind, levels=3), scheduler("epsilon").alphas_cumprod.double()
    asked = [item("a", "zero", "x"), item("b", "two", "y"), item("c", "two", "x")]
    with torch.no_grad():
        got = policy.log_probs(asked)
    assert got.mask.all()
    for i, one in enumerate(asked):
        where, z, _ = seeds.levels([one.draw], 3, SHAPE)
        x0 = images.decode(one.completion.image).double()
        for j in range(3):
            u, eps = float(where[0, j]), z[0, j].double()
            if kind == "flow":
                s = max(float(torch.sigmoid(Normal(0.0, 1.0).icdf(torch.tensor(u).double()))), 0.01)
                x, time, wanted = (1 - s) * x0 + s * eps, 1000 * s, eps - x0
            else:
                time = int(u * 1000)
                ab = alphas[time]
                x = ab.sqrt() * x0 + (1 - ab).sqrt() * eps
                wanted = eps if kind == "epsilon" else ab.sqrt() * eps - (1 - ab).sqrt() * x0
            out = policy.model(x[None], torch.tensor([time]), ids([one.messages[-1].content]))[0].detach()
            assert float(got.logp[i, j]) == pytest.approx(float(-0.5 * (out - wanted).square().mean()), rel=1e-6)


def test_equal_draws_share_level_and_noise_whatever_else_is_in_the_batch():
    policy, twin = bare(), bare()
    both = policy.log_probs([item("a", "one", "x"), item("a", "one", "x"), item("a", "one", "y")]).logp
    torch.testing.assert_close(both[0], both[1])
    assert not torch.allclose(both[0], both[2])
    alone = twin.log_probs([item("a", "one", "x")]).logp
    torch.testing.assert_close(alone[0], both[0])


def test_a_weight_changes_the_surrogate_as_the_card_says():
    asked = [item("a", "one", "x"), item("b", "two", "y")]
    half, whole = (bare("flow", weight=weight).log_probs(asked).logp for weight in ("half", "uniform"))
    torch.testing.assert_close(2 * half, whole)
    s = bare("flow").schedule.draw(seeds.levels(["x", "y"], 1, SHAPE)[0].flatten())[1]
    timed = bare("flow", weight="t").log_probs(asked).logp
    torch.testing.assert_close(timed[:, 0], whole[:, 0] * s)


def test_the_gradient_of_a_positive_advantage_is_that_of_the_flow_matching_loss():
    policy, asked = bare("flow", weight="uniform"), [item("a", "one", "x"), item("b", "two", "y")]
    by_policy = gradient(policy, -policy.log_probs(asked).logp.mean())
    where, z, _ = seeds.levels(["x", "y"], 1, SHAPE)
    time, _, (signal, s) = policy.schedule.draw(where.flatten())
    x0, z = policy.codec.encode([one.completion.image for one in asked]), z[:, 0].double()
    noisy = signal.view(2, 1, 1, 1) * x0 + s.view(2, 1, 1, 1) * z
    loss = nn.functional.mse_loss(policy.model(noisy, time, ids(["one", "two"])), z - x0)
    torch.testing.assert_close(by_policy, gradient(policy, loss))


def test_a_dropped_prompt_is_the_empty_caption_for_everybody_with_that_draw():
    draws = [f"d{i}" for i in range(200)]
    dropping = bare(drop_prompt=0.3).log_probs([item("a", "one", draw) for draw in draws]).logp
    other = bare(drop_prompt=0.3).log_probs([item("a", "two", draw) for draw in draws]).logp
    same = (dropping == other).squeeze(1)
    assert 40 <= int(same.sum()) <= 80
    full = bare().log_probs([item("a", "one", draw) for draw in draws]).logp
    assert torch.equal((dropping == full).squeeze(1), ~same)


def test_a_completion_without_an_image_is_refused():
    asked = Item("t", PROMPTS[0].messages, Completion(text="words"), "d")
    with pytest.raises(UserError, match="t: its completion has no image"):
        bare().log_probs([asked])


# -------------------------------------------------------------------------------------------------- trajectories


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_step_log_probs_are_those_of_the_rollout_and_of_a_slow_twin(kind, guidance):
    policy = bare(kind, guidance=guidance)
    found = policy.rollout(PROMPTS, 2, seed=0)
    steps = policy.step_logp(found)
    assert found.mask.tolist() == [True] * 4 + [False]
    torch.testing.assert_close(steps.logp.detach(), found.logp, rtol=1e-9, atol=1e-9)
    assert torch.equal(steps.old, found.logp)
    assert torch.equal(steps.mask[0], found.mask)
    for n, caption in enumerate(found.captions):
        for i in range(4):
            mean, std = slow_step(policy, kind, found.latents[n, i], i, caption, guidance)
            wanted = Normal(mean, std).log_prob(found.latents[n, i + 1]).mean()
            assert float(found.logp[n, i]) == pytest.approx(float(wanted), rel=1e-6)


def slow_step(policy: Policy, kind: str, x, i: int, caption: str, guidance: float):
    """One step of five for one image, by the cards' equations."""
    s, then = 1 - i / 5, 1 - (i + 1) / 5
    t = 1000 * s if kind == "flow" else 200 * (5 - i) - 1
    with torch.no_grad():
        said, empty = (policy.model(x[None], torch.tensor([t]), ids([c]))[0] for c in (caption, ""))
    out = empty + guidance * (said - empty)
    if kind == "flow":
        std = 0.7 * (s / (1 - (0.8 if i == 0 else s))) ** 0.5
        ds = then - s
        mean = x * (1 + std**2 / (2 * s) * ds) + out * (1 + std**2 * (1 - s) / (2 * s)) * ds
        return mean, std * (-ds) ** 0.5
    alphas = scheduler().alphas_cumprod.double()
    ab, ahead = alphas[t], alphas[t - 200]
    x0 = (x - (1 - ab).sqrt() * out) / ab.sqrt() if kind == "epsilon" else ab.sqrt() * x - (1 - ab).sqrt() * out
    e = out if kind == "epsilon" else ab.sqrt() * out + (1 - ab).sqrt() * x
    sigma = ((1 - ahead) / (1 - ab) * (1 - ab / ahead)).sqrt()
    return ahead.sqrt() * x0 + (1 - ahead - sigma**2).sqrt() * e, sigma


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_stored_trajectories_are_priced_as_they_were_sampled(kind):
    policy = bare(kind, likelihood="trajectory", trajectory_steps="all")
    candidates = policy.sample(PROMPTS, 2, seed=3)
    steps = policy.log_probs(sampled(policy), entropy=True)
    assert steps.mask.tolist() == [[True] * 4 + [False]] * 6
    for row, candidate in zip(steps.logp, candidates, strict=True):
        assert row.tolist() == pytest.approx(candidate.logps, abs=1e-4)
    std = policy.schedule.grid(5, policy.noise).std[:4]
    assert steps.entropy[0, :4].tolist() == pytest.approx(Normal(torch.zeros(4), std).entropy().tolist())


def test_one_step_of_a_trajectory_is_a_random_one_that_the_draw_decides():
    every = bare(likelihood="trajectory", trajectory_steps="all")
    one = bare(likelihood="trajectory", trajectory_steps="one")
    table, seen = every.log_probs(sampled(every)).logp.detach(), set()
    for draw in range(20):
        asked = sampled(one, draw=f"{draw}/")
        got = one.log_probs(asked)
        assert got.logp.shape == (6, 1)
        assert got.mask.all()
        for row, value in zip(table, got.logp[:, 0].detach(), strict=True):
            seen.add(int((row - value).abs().argmin()))
            assert float((row - value).abs().min()) < 1e-9
    assert seen == {0, 1, 2, 3}


def test_kl_and_reference_are_those_of_two_gaussians():
    policy, reference = bare(), bare(model=Small(seed=1))
    found = policy.rollout(PROMPTS, 1, seed=0)
    steps = policy.step_logp(found, reference)
    assert steps.kl.requires_grad
    assert not steps.ref.requires_grad
    for n, caption in enumerate(found.captions):
        for i in range(4):
            x = found.latents[n, i]
            p, q = (Normal(*slow_step(one, "epsilon", x, i, caption, 1.0)) for one in (policy, reference))
            assert float(steps.kl[n, i].detach()) == pytest.approx(float(kl_divergence(p, q).mean()), rel=1e-6)
            wanted = q.log_prob(found.latents[n, i + 1]).mean()
            assert float(steps.ref[n, i]) == pytest.approx(float(wanted), rel=1e-6)
    assert (policy.step_logp(found, policy).kl == 0).all()


def test_some_rows_of_a_rollout_are_priced_alike():
    policy = bare()
    found = policy.rollout(PROMPTS, 2, seed=0)
    rows = torch.tensor([4, 1])
    part = policy.step_logp(found.take(rows))
    torch.testing.assert_close(part.logp, policy.step_logp(found).logp[rows])
    torch.testing.assert_close(part.old, found.logp[rows])


@pytest.mark.parametrize(
    ("kind", "off"), [("epsilon", {"eta": 0}), ("flow", {"noise_level": 0}), ("flow", {"steps": 1})]
)
def test_a_deterministic_sampler_has_no_log_probs(kind, off):
    policy = bare(kind, likelihood="trajectory", **off)
    with pytest.raises(UserError, match="deterministic sampler .* has no log-probs"):
        policy.rollout(PROMPTS, 1, seed=0)
    with pytest.raises(UserError, match="deterministic sampler .* has no log-probs"):
        policy.log_probs([item("a", "one", "x")])
    assert not policy.sample(PROMPTS, 1, seed=0)[0].latents


def test_a_trajectory_of_other_steps_is_refused():
    asked = sampled(bare(likelihood="trajectory"))
    with pytest.raises(UserError, match="its trajectory has 96 numbers, not the 144 of 8 steps"):
        bare(likelihood="trajectory", steps=8).log_probs(asked)


# -------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_neighbours(kind):
    policy = bare(kind, likelihood="trajectory")
    together, alone = policy.sample(PROMPTS, 3, seed=1), policy.sample(PROMPTS[1:2], 2, seed=1)
    assert [c.id for c in together] == [f"p{i}/{k}" for i in range(3) for k in range(3)]
    for one, other in zip(together[3:5], alone, strict=True):
        assert one.id == other.id
        assert one.prompt == "p1"
        torch.testing.assert_close(images.unpack(one.latents, (-1,)), images.unpack(other.latents, (-1,)))
    assert len({c.image for c in together}) == 9
    assert policy.sample(PROMPTS, 1, seed=2)[0].image != together[0].image


def test_chunks_change_nothing(monkeypatch):
    policy = bare()
    whole = policy.rollout(PROMPTS, 2, seed=0)
    monkeypatch.setattr(sampling, "ROWS", 4)
    parts = policy.rollout(PROMPTS, 2, seed=0)
    torch.testing.assert_close(whole.latents, parts.latents)
    torch.testing.assert_close(whole.logp, parts.logp)


def test_a_shared_start_is_one_noise_a_prompt():
    shared, free = bare(shared_start=True), bare()
    starts = shared.rollout(PROMPTS, 2, seed=0).latents[:, 0]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    apart = free.rollout(PROMPTS, 2, seed=0).latents[:, 0]
    assert not torch.equal(apart[0], apart[1])


def test_samplers_settings_win_over_the_policys():
    policy = bare("v_prediction", likelihood="trajectory")
    own, given = policy.sample(PROMPTS, 1, seed=0), policy.sample(PROMPTS, 1, seed=0, steps=5, eta=1.0, guidance=1.0)
    assert own == given
    for other in ({"steps": 9}, {"eta": 0.0}, {"guidance": 2.0}):
        changed = policy.sample(PROMPTS, 1, seed=0, **other)
        assert changed[0].image != own[0].image
        assert not changed[0].latents  # could not be priced by this policy
        assert changed[0].logps == ()


def test_all_steps_with_a_gradient_are_full_backpropagation():
    policy = bare(eta=0.5)
    pixels = policy.differentiable_sample(PROMPTS, seed=0, k=2, grad_steps=5)
    reward = pixels.square().mean()
    asked = sampling.rows(PROMPTS, 2, 0, shared_start=False)
    x, z = seeds.normals(asked.starts, SHAPE).double(), seeds.normals(asked.names, (5, *SHAPE)).double()
    grid = policy.schedule.grid(5, 0.5)
    for i in range(5):
        out = policy.model(x, grid.time[i].expand(6), ids(asked.captions))
        x = grid.keep[i] * x + grid.move[i] * out + grid.std[i] * z[:, i]
    torch.testing.assert_close(pixels, x)
    torch.testing.assert_close(gradient(policy, reward), gradient(policy, x.square().mean()))


def test_detached_outputs_of_early_steps_give_the_same_gradient():
    """AlignProp's truncation (every early prediction detached) is DRaFT-K."""
    policy = bare(eta=0.0)
    by_policy = gradient(policy, policy.differentiable_sample(PROMPTS, seed=0, grad_steps=2).sum())
    asked, grid = sampling.rows(PROMPTS, 1, 0, shared_start=False), policy.schedule.grid(5, 0.0)
    x = seeds.normals(asked.starts, SHAPE).double()
    for i in range(5):
        out = policy.model(x, grid.time[i].expand(3), ids(asked.captions))
        x = grid.mean(x, out.detach() if i < 3 else out, i)
    torch.testing.assert_close(by_policy, gradient(policy, x.sum()))


def test_no_step_with_a_gradient_is_no_gradient():
    policy = bare()
    pixels = policy.differentiable_sample(PROMPTS, seed=0, grad_steps=0)
    assert not pixels.requires_grad
    torch.testing.assert_close(pixels.clamp(-1, 1), policy.rollout(PROMPTS, 1, seed=0).pixels)


def test_a_rule_says_how_many_steps_have_a_gradient():
    policy = bare()
    two, ruled = (policy.differentiable_sample(PROMPTS, seed=0, grad_steps=g) for g in (2, lambda steps: steps - 3))
    assert torch.equal(gradient(policy, two.sum()), gradient(policy, ruled.sum()))


def test_gradients_match_finite_differences():
    policy = bare(guidance=2.0)

    def reward() -> torch.Tensor:
        return policy.differentiable_sample(PROMPTS, seed=0, grad_steps=5).sin().mean()

    found = gradient(policy, reward())
    weight, at = policy.model.outer.bias, 0
    names = list(policy.parameters())
    place = sum(policy.parameters()[name].numel() for name in names[: names.index("outer.bias")])
    with torch.no_grad():
        weight[at] += 1e-5
        up = reward()
        weight[at] -= 2e-5
        down = reward()
    assert float(found[place + at]) == pytest.approx(float(up - down) / 2e-5, rel=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_checkpointing_changes_no_gradient(guidance):
    policies = [bare(guidance=guidance, gradient_checkpointing=on) for on in (True, False)]
    a, b = (gradient(p, p.differentiable_sample(PROMPTS, seed=0, grad_steps=3).square().sum()) for p in policies)
    torch.testing.assert_close(a, b)


def test_draft_lv_is_the_last_step_of_a_renoised_image():
    policy = bare(eta=0.0)
    pixels = policy.differentiable_sample(PROMPTS, seed=0, grad_steps=0, repeats=2)
    assert pixels.shape == (6, *SHAPE)
    assert not torch.equal(pixels[:3], pixels[3:])
    x0 = policy.differentiable_sample(PROMPTS, seed=0, grad_steps=0)
    z = seeds.normals([f"0:{p.id}/0 again 1" for p in PROMPTS], SHAPE).double()
    ab = scheduler().alphas_cumprod.double()[199]
    x = ab.sqrt() * x0 + (1 - ab).sqrt() * z
    e = policy.model(x, torch.full((3,), 199), ids(["zero", "two", "three"]))
    torch.testing.assert_close(pixels[3:], (x - (1 - ab).sqrt() * e) / ab.sqrt())
    assert gradient(policy, pixels.sum()).abs().sum() > 0


# -------------------------------------------------------------------------------------------------- LoRA, calls


def test_a_new_adapter_changes_nothing_until_it_is_trained():
    base, adapted = bare(), bare(model=lora.wrap(Small(), 2))
    torch.testing.assert_close(base.rollout(PROMPTS, 1, seed=0).latents, adapted.rollout(PROMPTS, 1, seed=0).latents)
    assert all("lora_" in name for name in adapted.parameters())
    with torch.no_grad():
        for parameter in adapted.parameters().values():
            parameter += 0.1
    changed = adapted.rollout(PROMPTS, 1, seed=0).latents
    assert not torch.allclose(base.rollout(PROMPTS, 1, seed=0).latents, changed)
    with adapted.model.disable_adapter():  # scale 0
        torch.testing.assert_close(
            base.rollout(PROMPTS, 1, seed=0).latents, adapted.rollout(PROMPTS, 1, seed=0).latents
        )


@pytest.mark.parametrize("kind", ["epsilon", "flow"])
def test_a_transformer_is_called_by_name(kind):
    """A diffusion transformer that also predicts a variance, which is left out."""
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2,
        num_layers=1,
        sample_size=4,
        cross_attention_dim=16,
        caption_channels=12,
        norm_num_groups=1,
    )
    policy = Policy(model, scheduler(kind), settings=Settings(steps=3), embed=lambda c: torch.ones(len(c), 2, 12))
    assert policy.shape == SHAPE
    found = policy.rollout(PROMPTS, 1, seed=0)
    torch.testing.assert_close(policy.step_logp(found).logp.detach(), found.logp, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------- as a whole


def test_batches_cover_all_items_in_order():
    found = list(bare().batches([item("a", "one", "x")] * 130))
    assert [len(batch) for batch in found] == [64, 64, 2]
    assert [i for batch in found for i in batch] == list(range(130))


def test_a_small_denoiser_learns_what_it_is_shown():
    """A few steps of the surrogate likelihood raise it: the policy trains end to end."""
    policy = bare()
    optimizer = torch.optim.Adam(policy.parameters().values(), lr=1e-2)
    shown = [item(f"{i % 2}", "one", f"{i}") for i in range(32)]
    first = float(policy.log_probs(shown).logp.detach().mean())
    for _ in range(30):
        optimizer.zero_grad()
        (-policy.log_probs(shown).logp.mean()).backward()
        optimizer.step()
    assert float(policy.log_probs(shown).logp.detach().mean()) > first + 0.05


def test_noise_levels_are_on_the_grid():
    assert noise.diffusion_grid(10).tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
