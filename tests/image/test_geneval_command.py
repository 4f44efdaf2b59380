"""GenEval's command, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from stages import images, records
from stages.evaluate import geneval
from stages.policies.image import tiny
from stages.prepare.readers import read_prompts
from stages.prepare.worlds import world
from stages.records import Candidate
from stages.scenes.draw import render
from stages.scenes.words import KINDS, scene

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = world("scenes", 1, 6, 0)[1]


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "stages.evaluate.geneval", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def called(monkeypatch, folder: Path, *words: str) -> Result:
    """The same in this process, without its imports anew."""
    app = typer.Typer()
    app.command()(geneval.main)
    monkeypatch.chdir(folder)
    return CliRunner().invoke(app, list(words))


def test_it_scores_a_folder_and_prints_the_summary(tmp_path):
    shown = [Candidate(id=f"{p.id}/0", prompt=p.id, image=images.encode(render(scene(p.checks), 0))) for p in PROMPTS]
    geneval.write(tmp_path / "images", PROMPTS, shown)
    done = command(tmp_path, "images")
    assert done.returncode == 0, done.stderr
    told = dict(line.split("\t") for line in done.stdout.splitlines())
    assert told == dict.fromkeys([*sorted(KINDS, key=list(told).index), "overall", "images", "prompts"], "1")
    assert len((tmp_path / "images/results.jsonl").read_text().splitlines()) == len(PROMPTS)


def test_a_policy_draws_first(tmp_path):
    (tmp_path / "params.yaml").write_text("run: {family: image, device: cpu, policy: {steps: 2, patch: 4}}\n")
    tiny.pipeline(tmp_path / "policy", channels=48)
    records.write(tmp_path / "prompts.jsonl", PROMPTS)
    done = command(tmp_path, "images", "--policy", "policy", "--prompts", "prompts.jsonl", "--samples", "2")
    assert done.returncode == 0, done.stderr
    assert float(dict(line.split("\t") for line in done.stdout.splitlines())["overall"]) < 0.5  # it was never trained
    assert len(list((tmp_path / "images").glob("*/samples/*.png"))) == 2 * len(PROMPTS)


def test_a_policy_draws_genevals_own_prompts_for_its_detector(tmp_path, monkeypatch):
    line = {
        "tag": "colors",
        "include": [{"class": "dog", "count": 1, "color": "red"}],
        "prompt": "a photo of a red dog",
    }
    (tmp_path / "params.yaml").write_text("run: {family: image, device: cpu, policy: {steps: 2}}\n")
    (tmp_path / "geneval.jsonl").write_text(json.dumps(line))
    asked = read_prompts(tmp_path / "geneval.jsonl", quarantine=tmp_path / "refused.jsonl").prompts
    tiny.pipeline(tmp_path / "policy")
    records.write(tmp_path / "prompts.jsonl", asked)
    done = called(monkeypatch, tmp_path, "images", "--policy", "policy", "--prompts", "prompts.jsonl", "--samples", "2")
    assert done.exit_code == 0, done.stderr
    assert (
        done.stdout == "images holds the pictures; their objects are no scenes: score it with GenEval's own detector\n"
    )
    assert json.loads((tmp_path / "images/00000/metadata.jsonl").read_text()) == line
    assert len(list((tmp_path / "images/00000/samples").glob("*.png"))) == 2
    assert not (tmp_path / "images/results.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["nowhere"], "no numbered folders"),
        (["images", "--policy", "policy", "--prompts", "nowhere.jsonl"], "no such file"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, words, what):
    (tmp_path / "params.yaml").write_text("run: {family: image}\n")
    done = called(monkeypatch, tmp_path, *words)
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert what in done.stderr


def test_a_folder_without_pictures_is_refused(tmp_path, monkeypatch):
    shown = [
        Candidate(id=f"{p.id}/0", prompt=p.id, image=images.encode(render(scene(p.checks), 0))) for p in PROMPTS[:1]
    ]
    geneval.write(tmp_path, PROMPTS[:1], shown)
    (tmp_path / "00000/samples/0000.png").unlink()
    done = called(monkeypatch, tmp_path, ".")
    assert done.exit_code == 2
    assert "no pictures" in done.stderr
