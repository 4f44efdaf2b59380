"""What the reference stage computed once: kept beside its log-probs, taken up by the optimize stage, the same bits."""

from pathlib import Path

import pytest
import torch

from stages import cached, feed, images, records
from stages.config import Choice, Run
from stages.entry import Job
from stages.errors import UserError
from stages.files import load_tensors, save_tensors
from stages.learn import Optimize
from stages.optimize import run as optimize
from stages.policies.image import Policy, Settings, tiny
from stages.policies.image.memory import Memory
from stages.records import Completion, Message, Pair
from stages.reference import run as reference
from tests.image.world import noise
from tests.test_loop import Notes

CAPTIONS = ("a handwritten seven", "a red square", "a photo of two circles")


class Journal(Notes):
    def checkpoint(self, folder, step):
        assert folder.is_dir()


def pairs() -> list[Pair]:
    """Random pictures; the captions take turns."""

    def picture(seed: int) -> Completion:
        return Completion(image=images.encode(noise(3, 16, 16, seed=seed)))

    return [
        Pair(
            id=f"p{i}",
            messages=(Message(role="user", content=CAPTIONS[i % 3]),),
            chosen=picture(2 * i),
            rejected=picture(2 * i + 1),
        )
        for i in range(7)
    ]


def autoencoder():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        norm_num_groups=4,
    )


def executed(stage, config, name: str) -> Path:
    """Run a stage's own function here; returns its output."""
    scratch = Path("scratch") / name
    (scratch / "out").mkdir(parents=True)
    out = stage.STAGE.output if stage is reference else scratch / "out"
    stage.run(Job(config, {}, scratch, out, Journal(scratch / "metrics.jsonl")))
    return out


def optimized(name: str, lora_r: int = 2) -> tuple[dict, str]:
    """Weights and curve of a run of two epochs, in batches that the reference was not priced in."""
    chosen = Optimize(
        objective=Choice(name="dpo", beta=1000.0), per_device_train_batch_size=2, num_train_epochs=2, lora_r=lora_r
    )
    out = executed(optimize, optimize.Settings(run=Run(family="image"), optimize=chosen), name)
    policy = Policy.load(out)
    return {n: p for n, p in policy.model.named_parameters()}, (out.parent / "metrics.jsonl").read_text()


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder in which the reference stage has run."""
    monkeypatch.chdir(tmp_path)
    tiny.pipeline(reference.POLICY, channels=2, vae=autoencoder())
    reference.LABELS.parent.mkdir(parents=True)
    records.write(reference.LABELS, pairs())
    executed(reference, reference.Settings(run=Run(family="image"), reference={"draws": 2}), "reference")
    return tmp_path


def calls(policy: Policy) -> list[str]:
    """A list that grows with each call of an encoder."""
    seen = []
    for part in (policy.home.pipe.text_encoder, policy.codec.vae.encoder):
        part.register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    return seen


def facts(settings: Settings = Settings()) -> dict[str, str]:
    return cached.facts(reference.POLICY, reference.LABELS, settings)


def test_the_reference_stage_keeps_every_caption_and_picture(project):
    folder = reference.STAGE.output
    tensors, held = load_tensors(folder / "captions.safetensors")
    assert set(held["keys"]) == set(CAPTIONS)
    assert tensors["encoder_hidden_states"].shape == (3, 16, 32)
    assert facts().items() <= held.items()
    tensors, held = load_tensors(folder / "latents.safetensors")
    assert tensors["latents"].shape == (14, 2, 8, 8)
    assert all(len(key) == 32 for key in held["keys"]), "digests, not pictures"
    assert facts().items() <= held.items()
    kept = {f"{name}.safetensors" for name in ("captions", "latents", "logps")}
    assert {file.name for file in folder.iterdir()} == {*kept, "difficulty.json"}


def test_a_recalled_policy_encodes_nothing_and_prices_the_same_bits(project):
    asked = [item for pair in pairs() for item in feed.items(pair)]
    plain, recalled = Policy.load(reference.POLICY), Policy.load(reference.POLICY)
    cached.recall(recalled, reference.STAGE.output, facts())
    seen = calls(recalled)
    assert torch.equal(recalled.log_probs(asked).logp, plain.log_probs(asked).logp)
    assert seen == []
    plain = Policy.load(reference.POLICY)
    for at in (slice(3), slice(3, None)):  # whatever it was first met beside
        assert torch.equal(recalled.log_probs(asked[at]).logp, plain.log_probs(asked[at]).logp)


def test_a_recalled_run_is_a_run_without_caches(project):
    recalled, curve = optimized("recalled")
    for name in ("captions", "latents"):
        (reference.STAGE.output / f"{name}.safetensors").unlink()
    plain, other = optimized("plain")
    assert curve == other
    assert recalled.keys() == plain.keys()
    assert all(torch.equal(value, plain[name]) for name, value in recalled.items())


def test_what_was_recalled_is_used(project):
    """A cache of other numbers gives another run: the stage does read it."""
    plain, _ = optimized("plain")
    file = reference.STAGE.output / "latents.safetensors"
    tensors, held = load_tensors(file)
    save_tensors(file, {"latents": tensors["latents"] + 1}, held)
    changed, _ = optimized("changed")
    assert not all(torch.equal(value, plain[name]) for name, value in changed.items())


@pytest.mark.parametrize("name", ["captions", "latents"])
@pytest.mark.parametrize("fact", ["reference", "preferences", "policy resolution"])
def test_a_cache_of_something_else_is_refused(project, name, fact):
    file = reference.STAGE.output / f"{name}.safetensors"
    tensors, held = load_tensors(file)
    save_tensors(file, tensors, {**held, fact: "another"})
    with pytest.raises(
        UserError, match=f"{name}.safetensors: was computed with another {fact} .*; rerun the reference"
    ):
        optimized("refused")


def test_a_text_encoder_that_learns_never_uses_what_was_recalled(project):
    policy = Policy.load(reference.POLICY, trainable=True)
    seen = calls(policy)
    cached.recall(policy, reference.STAGE.output, facts())
    assert (len(policy.captions.known), len(policy.codec.known)) == (0, 14)
    priced = policy.log_probs([item for pair in pairs() for item in feed.items(pair)])
    assert seen == ["CLIPTextModel"]
    priced.logp.sum().backward()
    assert all(p.grad is not None for name, p in policy.parameters().items() if name.startswith("text_encoder"))
    cached.remember(policy, project / "kept", facts())
    assert [f.name for f in (project / "kept").iterdir()] == ["latents.safetensors"]


def test_a_memory_keeps_no_more_than_it_has_room_for():
    memory = Memory(room=40)
    for key in ("a", "b", "c"):
        assert torch.equal(memory.keep(key, {"x": torch.ones(4)})["x"], torch.ones(4))
    assert list(memory) == ["a", "b"]
    memory.keep("d", {"x": torch.ones(2)})
    assert list(memory) == ["a", "b", "d"]


def test_a_family_without_memories_needs_nothing(tmp_path):
    from stages.policies import tiny as text
    from stages.policies.text.policy import TextPolicy

    text.language_model(tmp_path / "model")
    policy = TextPolicy.load(tmp_path / "model")
    cached.remember(policy, tmp_path / "kept", {})
    cached.recall(policy, tmp_path / "kept", {})
    assert not (tmp_path / "kept").exists()
