"""Every kind of pipeline as a policy, and what diffusers' own `__call__` makes of the same noise."""

import inspect
import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from stages import images
from stages.batches import Item
from stages.errors import UserError
from stages.policies.image import Policy, Settings, sampling
from stages.records import Completion, Message, Prompt
from tests.image import pipelines
from tests.image.world import noise

KINDS = list(pipelines.KINDS)
CAPTIONED = [kind for kind in KINDS if kind != "unconditional"]
LOADED = [kind for kind in CAPTIONED if "pixart" not in kind]  # PixArt's pipelines have no load_lora_weights
every_kind = pytest.mark.parametrize("kind", KINDS)
CAPTIONS = ("a handwritten seven", "a photo of a red square")
PROMPTS = [Prompt(id=f"p{i}", messages=(Message(role="user", content=caption),)) for i, caption in enumerate(CAPTIONS)]
ROWS = sampling.rows(PROMPTS, 1, 0, shared_start=False)
STEPS, SIDE = 4, 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: pipelines.written(kind, tmp_path_factory.mktemp("pipeline")) for kind in KINDS}


def load(folder: Path, *, lora_r: int = 0, dtype: torch.dtype = torch.float32, **settings) -> Policy:
    """A deterministic policy unless told otherwise, on pictures of 16 pixels; without an autoencoder, of 8."""
    side = None if "DDIMPipeline" in (folder / "model_index.json").read_text() else SIDE
    given = {"steps": STEPS, "eta": 0.0, "noise_level": 0.0, "resolution": side, **settings}
    return Policy.load(folder, Settings(**given), dtype=dtype, trainable=lora_r > 0, lora_r=lora_r)


def nudge(policy: Policy) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter += 0.1 * torch.randn_like(parameter)


def items() -> list[Item]:
    shown = [Completion(image=images.encode(noise(3, SIDE, SIDE, seed=i))) for i in range(2)]
    return [Item(p.id, p.messages, one, p.id) for p, one in zip(PROMPTS, shown, strict=True)]


def theirs(pipe: Any, start: torch.Tensor, *, guidance: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Latents that the pipeline ends at, and the output of each call of its denoiser."""
    seen: list[torch.Tensor] = []
    model = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    hook = model.register_forward_hook(lambda module, given, out: seen.append(out[0]))
    known = inspect.signature(pipe.__call__).parameters
    asked = {
        "height": SIDE,
        "width": SIDE,
        "sigmas": numpy.linspace(1, 1 / STEPS, STEPS) if "FlowMatch" in type(pipe.scheduler).__name__ else None,
        "guidance_scale": guidance,
        "eta": 0.0,
        "use_resolution_binning": False,
    }
    asked = {name: value for name, value in asked.items() if name in known and value is not None}
    flux = type(pipe).__name__ == "FluxPipeline"
    b, c, h, w = start.shape
    given = pipe._pack_latents(start, b, c, h, w) if flux else start
    found = pipe(list(CAPTIONS), num_inference_steps=STEPS, latents=given, output_type="latent", **asked).images
    hook.remove()
    return pipe._unpack_latents(found, SIDE, SIDE, pipe.vae_scale_factor) if flux else found, seen


def ours(policy: Policy, guidance: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, what the denoiser says of it and the captions, and latents at the end of our own walk."""
    grid = policy.schedule.grid(STEPS, 0.0)
    path = [x for x, _ in sampling.walk(policy, ROWS, grid, guidance)]
    told = guidance if policy.denoiser.distilled else 1.0
    with torch.no_grad():
        condition = policy.denoiser.condition(CAPTIONS, told)
        out = policy.denoiser(path[0], grid.time[0].expand(2), condition, told)
    return path[0], out, path[-1]


PARITY = [(kind, guidance) for kind in CAPTIONED for guidance in (1.0, 3.0)]
PARITY.remove(("flux without guidance", 3.0))  # the pipeline guides it by a negative prompt alone


@pytest.mark.parametrize(("kind", "guidance"), PARITY)
def test_the_pipeline_itself_ends_at_the_same_latents(folders, kind, guidance):
    """The first call of the denoiser and the end of the walk, from the same noise."""
    policy = load(folders[kind])
    start, out, end = ours(policy, guidance)
    found, calls = theirs(policy.home.pipe, start, guidance=guidance)
    first = calls[0]
    if "flux" in kind:
        first = policy.home.pipe._unpack_latents(first, SIDE, SIDE, policy.home.pipe.vae_scale_factor)
    said = first[-2:, : out.shape[1]]  # under guidance the captioned half comes last; a variance is left out
    torch.testing.assert_close(out, said, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(end, found, atol=2e-4, rtol=1e-3)


@every_kind
def test_samples_rollouts_and_prices(folders, kind):
    policy = load(folders[kind], lora_r=2, eta=1.0, noise_level=0.7)
    priced = policy.log_probs(items())
    assert priced.logp.shape == (2, 1)
    priced.logp.sum().backward()
    moved = [p.grad.abs().sum() for p in policy.parameters().values() if p.grad is not None]
    assert sum(moved) > 0
    sampled = policy.sample(PROMPTS, 2, seed=0)
    assert [c.id for c in sampled] == ["p0/0", "p0/1", "p1/0", "p1/1"]
    side = 8 if kind == "unconditional" else SIDE
    assert {images.decode(c.image).shape for c in sampled} == {(1 if kind == "unconditional" else 3, side, side)}
    taken = policy.rollout(PROMPTS, 2, seed=0)
    again = policy.step_logp(taken)
    torch.testing.assert_close(again.logp[:, taken.mask], taken.logp[:, taken.mask], atol=1e-4, rtol=1e-4)
    assert again.logp.requires_grad
    assert policy.differentiable_sample(PROMPTS, seed=0, grad_steps=1).requires_grad


@every_kind
def test_half_precision_is_near(folders, kind):
    """The weights alone are in half precision, and what they are told with them."""
    full = load(folders[kind], eta=1.0, noise_level=0.7)
    policy = load(folders[kind], dtype=torch.bfloat16, lora_r=2, eta=1.0, noise_level=0.7)
    priced, wanted = policy.log_probs(items()).logp, full.log_probs(items()).logp
    assert priced.dtype == torch.float32
    torch.testing.assert_close(priced, wanted, atol=0.02, rtol=0.02)
    priced.sum().backward()
    assert len(policy.sample(PROMPTS, 1, seed=0)) == 2


@every_kind
def test_what_is_said_matters_wherever_it_goes(folders, kind):
    """Each tensor of a condition changes the output; the empty caption has another one."""
    policy = load(folders[kind])
    asked = policy.denoiser.condition([*CAPTIONS, ""], 1.0)
    x, time = noise(3, *policy.shape), torch.tensor([500, 500, 500])
    with torch.no_grad():
        out = policy.denoiser(x, time, asked, 1.0)
        for name, values in asked.items():
            changed = 1 - values if name == "encoder_attention_mask" else values + 1
            other = policy.denoiser(x, time, {**asked, name: changed}, 1.0)
            assert not torch.allclose(out, other, atol=1e-4), name
    assert set(asked) - {"guidance"} == {name for name in policy.denoiser.convention.reads if name}


@every_kind
def test_an_adapter_comes_back(folders, kind, tmp_path):
    policy = load(folders[kind], lora_r=2)
    base = load(folders[kind]).log_probs(items()).logp
    torch.testing.assert_close(policy.log_probs(items()).logp, base)
    nudge(policy)
    policy.save(tmp_path)
    wanted = policy.log_probs(items()).logp
    assert not torch.allclose(wanted, base, atol=1e-5)
    settings = policy.settings
    torch.testing.assert_close(Policy.load(tmp_path, settings).log_probs(items()).logp, wanted, atol=1e-5, rtol=1e-4)
    trained = Policy.load(tmp_path, settings, trainable=True, lora_r=2)
    assert trained.parameters().keys() == policy.parameters().keys()
    torch.testing.assert_close(trained.log_probs(items()).logp, wanted)


@pytest.mark.parametrize("kind", LOADED)
def test_diffusers_loads_the_adapter_itself(folders, kind, tmp_path):
    policy = load(folders[kind], lora_r=2)
    nudge(policy)
    policy.save(tmp_path)
    start, out, end = ours(policy, 1.0)
    pipe = load(folders[kind]).home.pipe
    plain, _ = theirs(pipe, start, guidance=1.0)
    pipe.load_lora_weights(tmp_path)
    found, _ = theirs(pipe, start, guidance=1.0)
    torch.testing.assert_close(end, found, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(plain, found, atol=1e-2)


@every_kind
def test_a_whole_policy_comes_back(folders, kind, tmp_path):
    policy = Policy.load(folders[kind], load(folders[kind]).settings, trainable=True)
    encoders = {name.split(".")[0] for name in policy.parameters() if name.startswith("text_encoder")}
    assert encoders == ({"text_encoder"} if kind == "stable diffusion" else set())
    nudge(policy)
    policy.save(tmp_path)
    again = Policy.load(tmp_path, policy.settings)
    torch.testing.assert_close(again.log_probs(items()).logp, policy.log_probs(items()).logp)


def test_no_caption_is_zeros_where_the_pipeline_says_so(folders):
    """SDXL's own rule, in training too."""
    asked = load(folders["sdxl"]).denoiser.condition(["", CAPTIONS[0]], 1.0)
    assert all((values[0] == 0).all() and (values[1] != 0).any() for values in asked.values())
    asked = load(folders["sd3"]).denoiser.condition(["", CAPTIONS[0]], 1.0)
    assert all((values[0] != 0).any() for values in asked.values())


def test_an_autoencoder_that_would_overflow_stays_in_full_precision(folders):
    policy = load(folders["sdxl"], dtype=torch.float16)
    assert policy.home.pipe.vae.config.force_upcast
    assert (policy.codec.vae.dtype, policy.denoiser.weights) == (torch.float32, torch.float16)
    latents = policy.codec.encode([item.completion.image for item in items()])
    torch.testing.assert_close(
        policy.codec.decode(latents), load(folders["sdxl"]).codec.decode(latents), atol=0.02, rtol=0
    )


def test_another_kind_is_refused_before_it_is_read(folders, tmp_path):
    index = json.loads((folders["sd3"] / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "AuraFlowPipeline"}))
    with pytest.raises(UserError, match="a AuraFlowPipeline is not supported; use one of .*StableDiffusionXL, "):
        Policy.load(tmp_path)


def test_flux_says_no_size(folders):
    with pytest.raises(UserError, match="gives no size of its images; set run.policy.resolution"):
        Policy.load(folders["flux"])
    with pytest.raises(UserError, match="run.policy.resolution: 18 is no multiple of 4"):
        Policy.load(folders["flux"], Settings(resolution=18))
