"""The real graph on images: a tiny UNet on real digits, every stage, a kill, what goes stale, a user's mistakes."""

import json
import re
import shutil
import signal

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stages import images, records
from stages.files import load_tensors, save_tensors
from stages.policies.image import Policy
from stages.records import Candidate, Pair, Prompt
from tests.pipeline.conftest import command, execute
from tests.pipeline.test_choices import choose
from tests.pipeline.test_graph import stale
from tests.pipeline.test_kill import kill_when

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first one waits for the whole graph
WEIGHTS = "pytorch_lora_weights.safetensors"
ROUNDS = ("selfplay/r1", "selfplay/r2")
STAGES = ("prepare", "sft", "generate", "label", "reward", "reference", "optimize", *ROUNDS, "evaluate")


def rows(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# -------------------------------------------------------------------------------------------------- what it leaves


def test_every_stage_leaves_its_output_settings_and_metrics(finished_image):
    for stage in STAGES:
        assert (finished_image / "data" / stage / "settings.json").is_file(), stage
        metrics = json.loads((finished_image / "metrics" / f"{stage.replace('/', '-')}.json").read_text())
        assert metrics
        assert all(isinstance(value, float | int) for value in metrics.values())
    assert not list((finished_image / ".scratch").glob("*/*/out")), "finished work stays in scratch"
    assert not [f for f in (finished_image / "data").rglob("*") if f.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]


def test_candidates_are_pictures_and_preferences_are_about_them(finished_image):
    prompts = records.read(finished_image / "data/prepare/train.jsonl", Prompt)
    scored = records.read(finished_image / "data/label/candidates.jsonl", Candidate)
    assert len(scored) == 12 * 3
    assert {c.prompt for c in scored} == {p.id for p in prompts[:12]}
    assert {images.decode(c.image).shape for c in scored} == {(1, 8, 8)}
    assert not any(c.text for c in scored)
    assert all(c.scores["brightness"] == pytest.approx(float(images.decode(c.image).mean()), abs=1e-5) for c in scored)
    pairs = records.read(finished_image / "data/label/preferences.jsonl", Pair)
    assert pairs
    for pair in pairs:
        bright, dark = (float(images.decode(side.image).mean()) for side in (pair.chosen, pair.rejected))
        assert bright > dark
        assert pair.margin == pytest.approx((bright - dark) / 2, abs=1e-5)  # brightness lies in [-1, 1]


def test_every_draw_of_every_picture_has_its_reference(finished_image):
    pairs = records.read(finished_image / "data/label/preferences.jsonl", Pair)
    tensors, facts = load_tensors(finished_image / "data/reference/logps.safetensors")
    names = {f"{pair.id}:{side}{draw}" for pair in pairs for side in ("chosen", "rejected") for draw in ("", "~1")}
    assert set(facts["lengths"]) == names
    assert tensors["logps"].isfinite().all()
    assert len(set(tensors["logps"].tolist())) > len(names) / 2, "a draw has its own level and noise"


def test_captions_are_kept_and_pixels_that_are_no_latents_are_not(finished_image):
    pairs = records.read(finished_image / "data/label/preferences.jsonl", Pair)
    tensors, facts = load_tensors(finished_image / "data/reference/captions.safetensors")
    assert set(facts["keys"]) == {pair.messages[-1].content for pair in pairs}
    assert len(tensors["encoder_hidden_states"]) == len(facts["keys"])
    assert not (finished_image / "data/reference/latents.safetensors").exists()


def test_the_first_step_starts_at_the_reference(finished_image):
    curve = rows(finished_image / "data/optimize/metrics.jsonl")
    assert curve[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert curve[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-3)
    assert abs(curve[-1]["loss"] - 0.693147) > 1e-4, "nothing was learnt"
    for stage in ROUNDS:
        first = rows(finished_image / "data" / stage / "metrics.jsonl")[0]
        assert first["loss"] == pytest.approx(0.693147, abs=1e-4)


def test_adapters_are_what_diffusers_loads(finished_image, monkeypatch):
    from diffusers import StableDiffusionPipeline

    monkeypatch.chdir(finished_image)
    torch.manual_seed(0)
    x, t, said = torch.randn(1, 1, 8, 8), torch.tensor([500]), torch.randn(1, 16, 32)
    plain = []
    for stage in ("optimize", *ROUNDS):
        folder = finished_image / "data" / stage
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "data/sft"
        pipe = StableDiffusionPipeline.from_pretrained("data/sft", vae=None, local_files_only=True)
        pipe.load_lora_weights(folder)
        with torch.no_grad():
            theirs = pipe.unet(x, t, said).sample
            ours = Policy.load(folder).model(x, t, said).sample
            pipe.unload_lora_weights()
            plain.append(pipe.unet(x, t, said).sample)
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-4)
        assert not torch.equal(theirs, plain[0])


def test_the_rounds_chain_and_their_gates_have_spoken(finished_image):
    for stage, before in zip(ROUNDS, ("data/optimize", "data/selfplay/r1")):
        folder = finished_image / "data" / stage
        gate = json.loads((folder / "gate.json").read_text())
        assert isinstance(gate["continue"], bool)
        assert bool(gate["reasons"]) != gate["continue"]
        chain = json.loads((folder / "previous.json").read_text())["previous"]
        held_back = (
            stage.endswith("r2")
            and not json.loads((finished_image / "data/selfplay/r1/gate.json").read_text())["continue"]
        )
        assert chain == ("data/optimize" if held_back else before)
        after = records.read(folder / "after.jsonl", Candidate)
        assert all(candidate.image for candidate in after)


def test_the_report_shows_pictures_before_and_after(finished_image):
    folder = finished_image / "data/evaluate"
    sheets = [Image.open(folder / f"{name}.png") for name in ("before", "after")]
    assert sheets[0].size == sheets[1].size
    assert sheets[0].tobytes() != sheets[1].tobytes()
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 10
    metrics = json.loads((finished_image / "metrics/evaluate.json").read_text())
    assert {"win_rate", "surrogate_kl", "image_diversity", "score/brightness"} <= metrics.keys()
    assert not {"kl", "diversity", "drift"} & metrics.keys(), "measures of texts"


# -------------------------------------------------------------------------------------------------- the graph


def test_demonstrations_come_before_samples(finished_image):
    """The untrained denoiser draws noise: candidates are of the policy that has seen demonstrations."""
    done = command(finished_image, "dvc", "dag", "--dot")
    assert done.returncode == 0, done.stderr
    edges = re.findall(r'"?([\w@]+)"? -> "?([\w@]+)"?', done.stdout)
    assert ("sft", "generate") in edges
    later, ahead = set(), ["generate"]
    while ahead:
        found = {b for a, b in edges if a == ahead[-1]} - later
        ahead.pop()
        later |= found
        ahead += found
    assert "sft" not in later
    assert {"label", "reference", "optimize", "evaluate"} <= later


def test_only_a_chosen_reward_makes_its_stages_stale(image_workspace):
    def edited(name: str) -> set[str]:
        file = image_workspace / f"stages/label/rewards/{name}.py"
        file.write_text(file.read_text() + "\n# edited\n")
        assert stale(image_workspace) == {"parts"}
        assert command(image_workspace, "dvc", "repro", "parts").returncode == 0
        return stale(image_workspace)

    assert stale(image_workspace) == set(), "nothing to do at first"
    assert edited("compressibility") == set()
    assert edited("brightness") == {"label", "selfplay@r1", "selfplay@r2", "evaluate"}


def test_a_killed_stage_resumes_to_the_same_bits(image_workspace, finished_image):
    shutil.rmtree(image_workspace / "data/optimize")
    sign = "*/checkpoint.safetensors"
    assert kill_when(image_workspace, ["stages.optimize"], "optimize", sign) == -signal.SIGKILL
    assert not (image_workspace / "data/optimize").exists(), "half a result was published"
    assert list((image_workspace / ".scratch/optimize").glob(sign))
    done = command(image_workspace, "stages.optimize")
    assert done.returncode == 0, done.stderr[-2000:]
    again, once = (load_file(folder / "data/optimize" / WEIGHTS) for folder in (image_workspace, finished_image))
    assert again.keys() == once.keys()
    assert all(torch.equal(value, once[name]) for name, value in again.items())
    again, once = (rows(folder / "data/optimize/metrics.jsonl") for folder in (image_workspace, finished_image))
    assert again == once


# -------------------------------------------------------------------------------------------------- learning online

EXACT = {"likelihood": "trajectory", "trajectory_steps": "all"}
ONLINE = {
    "ddpo": (EXACT, {"clip": 0.01}, {"num_iterations": 2}),
    "awm": ({}, {}, {}),
    "draft": ({}, {}, {}),
}


@pytest.mark.parametrize("name", ONLINE)
def test_the_stage_learns_online_and_is_watched(image_workspace, monkeypatch, name):
    """From prompts and the policy alone, by an objective of each kind."""
    policy, settings, online = ONLINE[name]
    bright = {"rewards": {"brightness": {"weight": 1.0}}}
    choose(
        image_workspace,
        {
            "run": {"policy": policy},
            "optimize": {
                "objective": {"name": name, **settings},
                "online": {**bright, "num_generations": 3, **online},
                "watch": {**bright, "steps": 2, "prompts": 4},
                "num_train_epochs": 1,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 2,
            },
        },
    )
    monkeypatch.chdir(image_workspace)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{image_workspace / 'mlflow.db'}")
    execute("optimize")
    curve = rows(image_workspace / "data/optimize/metrics.jsonl")
    assert len(curve) == 3 * online.get("num_iterations", 1)
    assert all("reward" in row for row in curve)
    assert [row["step"] for row in curve if "watch/score" in row] == ([2, 4, 6] if name == "ddpo" else [2, 3])
    assert (image_workspace / "data/optimize" / WEIGHTS).is_file()
    told = json.loads((image_workspace / "metrics/optimize.json").read_text())
    assert {"reward", "loss", "watch/score", "watch/change", "watch/z"} <= told.keys()


# -------------------------------------------------------------------------------------------------- mistakes

BRIGHT = {"rewards": {"brightness": {}}}
MISTAKES = [
    ("label", {"label": {"rewards": {"relevance": {}}}}, "reward 'relevance' does not fit the family 'image'"),
    ("generate", {"generate": {"sampler": {"name": "temperature"}}}, "sampler 'temperature' does not fit the family"),
    ("generate", {"run": {"policy": {"step": 4}}}, "the family 'image' has no setting 'step'; did you mean 'steps'?"),
    ("optimize", {"optimize": {"num_train_epochs": 3}}, "set reference.draws to the number of epochs"),
    ("optimize", {"optimize": {"objective": {"name": "ddpo"}}}, "objective 'ddpo' learns online"),
    ("optimize", {"optimize": {"objective": {"name": "rankdpo"}}}, "takes groups, the labels are pairs"),
]


@pytest.mark.parametrize(("stage", "overlay", "says"), MISTAKES, ids=[says[:24] for _, _, says in MISTAKES])
def test_a_mistake_is_one_line(image_workspace, refusal, stage, overlay, says):
    choose(image_workspace, overlay)
    before = sorted((image_workspace / "data").rglob("*"))
    assert says in refusal(image_workspace, stage)
    assert sorted((image_workspace / "data").rglob("*")) == before, "a refused run touched a result"


def test_another_reference_than_the_kept_one_is_refused(image_workspace, refusal):
    file = image_workspace / "data/reference/captions.safetensors"
    tensors, facts = load_tensors(file)
    file.unlink()  # it may be a link into DVC's cache
    save_tensors(file, tensors, {**facts, "reference": "of yesterday"})
    said = refusal(image_workspace, "optimize")
    assert "data/reference/captions.safetensors: was computed with another reference (of yesterday, now" in said
    assert said.endswith("rerun the reference stage: dvc repro -s -f reference")


def test_corrupt_weights_are_one_line(image_workspace, refusal):
    file = image_workspace / "data/sft/unet/diffusion_pytorch_model.safetensors"
    content = file.read_bytes()[:100]
    file.unlink()  # it may be a link into DVC's cache
    file.write_bytes(content)
    assert "data/sft: cannot be loaded" in refusal(image_workspace, "generate")
