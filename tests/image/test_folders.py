"""The image policy on disk: pipelines, adapters and autoencoders, and what plain diffusers makes of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages import images
from stages.batches import Item
from stages.errors import UserError
from stages.policies.image import Policy, Settings, sampling, seeds, tiny
from stages.records import Completion, Message, Prompt

CAPTIONS = [
    Prompt(id=f"p{i}", messages=(Message(role="user", content=caption),))
    for i, caption in enumerate(("a handwritten seven", "a photo of a red square"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("image") / "base"
    tiny.pipeline(made, prediction_type="v_prediction")
    return made


def nudge(policy: Policy) -> None:
    """Move every trained weight a little."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter += 0.05 * torch.randn_like(parameter)


def test_a_pipeline_comes_back_as_it_was_saved(folder, tmp_path):
    policy = Policy.load(folder, trainable=True)
    assert {name.split(".")[0] for name in policy.parameters()} >= {"text_encoder", "down_blocks"}
    nudge(policy)
    policy.save(tmp_path / "out")
    again = Policy.load(tmp_path / "out")
    assert not again.parameters()
    a, b, base = (p.rollout(CAPTIONS, 1, seed=0).latents for p in (policy, again, Policy.load(folder)))
    torch.testing.assert_close(a, b)
    assert not torch.allclose(a, base)


def test_an_adapter_comes_back_folded_in_or_to_be_trained_on(folder, tmp_path):
    policy = Policy.load(folder, trainable=True, lora_r=4)
    assert all("lora_" in name for name in policy.parameters())
    base = Policy.load(folder).rollout(CAPTIONS, 1, seed=0).latents
    torch.testing.assert_close(policy.rollout(CAPTIONS, 1, seed=0).latents, base)
    nudge(policy)
    policy.save(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["adapter_config.json", "pytorch_lora_weights.safetensors"]
    wanted = policy.rollout(CAPTIONS, 1, seed=0).latents
    assert not torch.allclose(wanted, base)
    folded, trained = Policy.load(tmp_path), Policy.load(tmp_path, trainable=True, lora_r=4)
    assert folded.parameters() == {}
    assert trained.parameters().keys() == policy.parameters().keys()
    torch.testing.assert_close(trained.rollout(CAPTIONS, 1, seed=0).latents, wanted)
    torch.testing.assert_close(folded.rollout(CAPTIONS, 1, seed=0).latents, wanted, rtol=1e-4, atol=1e-4)
    whole = Policy.load(tmp_path, trainable=True)
    assert not any("lora_" in name for name in whole.parameters())
    torch.testing.assert_close(whole.rollout(CAPTIONS, 1, seed=0).latents, wanted, rtol=1e-4, atol=1e-4)


PLAIN = """
import sys, torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
base, adapter, start, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(base, vae=None)
pipe.load_lora_weights(adapter)
found = pipe(["a handwritten seven", "a photo of a red square"], height=64, width=64, output_type="latent",
             num_inference_steps=5, guidance_scale=3.0, eta=0.0, latents=load_file(start)["x"]).images
save_file({"x": found}, out)
"""


@pytest.mark.slow
def test_plain_diffusers_makes_the_same_images(folder, tmp_path):
    """A process that knows only diffusers: the base pipeline, `load_lora_weights`, DDIM with eta 0."""
    from safetensors.torch import load_file, save_file

    policy = Policy.load(folder, Settings(steps=5, eta=0.0, guidance=3.0), trainable=True, lora_r=4)
    nudge(policy)
    policy.save(tmp_path)
    start, out = tmp_path / "start.safetensors", tmp_path / "out.safetensors"
    asked = sampling.rows(CAPTIONS, 1, 0, shared_start=False)
    save_file({"x": seeds.normals(asked.starts, policy.shape)}, start)
    given = [sys.executable, "-c", PLAIN, str(folder), str(tmp_path), str(start), str(out)]
    done = subprocess.run(given, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    mine = policy.differentiable_sample(CAPTIONS, seed=0, grad_steps=0)
    torch.testing.assert_close(mine, load_file(out)["x"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["v_prediction", "flow"])
def test_an_autoencoder_stands_between_pixels_and_latents(kind, tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    vae = AutoencoderTiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
    )
    tiny.pipeline(tmp_path, channels=2, vae=vae, prediction_type=kind)
    policy = Policy.load(tmp_path, Settings(steps=3), trainable=True, lora_r=2)
    found = policy.rollout(CAPTIONS, 2, seed=0)
    assert found.latents.shape == (4, 4, 2, 8, 8)
    assert found.pixels.shape == (4, 3, 16, 16)
    pixels = policy.differentiable_sample(CAPTIONS, seed=0, grad_steps=1)
    found = torch.autograd.grad(pixels.mean(), list(policy.parameters().values()))
    assert sum(g.abs().sum() for g in found) > 0
    assert not any(p.requires_grad for p in policy.codec.vae.parameters())
    grey = images.encode(torch.zeros(1, 9, 9))  # another size and one channel
    with torch.no_grad():
        wanted = vae.encode(torch.full((1, 3, 16, 16), float(images.decode(grey).mean()))).latents
    torch.testing.assert_close(policy.codec.encode([grey]), wanted)
    asked = Item("x", CAPTIONS[0].messages, Completion(image=grey), "d")
    assert policy.log_probs([asked]).logp.requires_grad


def test_a_resolution_that_the_model_was_not_trained_at(folder):
    policy = Policy.load(folder, Settings(resolution=16, steps=2))
    assert policy.rollout(CAPTIONS[:1], 1, seed=0).pixels.shape == (1, 1, 16, 16)


def test_a_frozen_caption_is_encoded_once_and_a_trained_one_each_time(folder):
    frozen, trained = Policy.load(folder), Policy.load(folder, trainable=True)
    for policy, calls in ((frozen, 1), (trained, 2)):
        seen = []
        policy.captions.embed.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        for _ in range(2):
            policy.log_probs(
                [Item("x", CAPTIONS[0].messages, Completion(image=images.encode(torch.zeros(1, 8, 8))), "d")]
            )
        assert len(seen) == calls


def test_faults_of_a_folder_are_one_line(folder, tmp_path):
    with pytest.raises(UserError, match="holds no model_index.json"):
        Policy.load(tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="an adapter without an adapter_config.json that names its base"):
        Policy.load(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    with pytest.raises(UserError, match="cannot be loaded"):
        Policy.load(tmp_path)
    policy = Policy.load(folder)
    with pytest.raises(UserError, match="belongs to no pipeline"):
        Policy(policy.model, policy.home.pipe.scheduler, embed=policy.captions.embed).save(tmp_path)


def test_pickles_and_foreign_code_are_refused(tmp_path):
    tiny.pipeline(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    changed = {**index, "_class_name": ["mine", "MyPipeline"]}
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')")
    (tmp_path / "model_index.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"a \['mine', 'MyPipeline'\] is not supported; use one of DDPM"):
        Policy.load(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UserError, match="holds only pickled weights"):
        Policy.load(tmp_path)
