"""The journal against a real database: what is written, what a kill loses, what an unreachable server delays."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from stages import images, lineage, loop, mirror
from stages.config import Training
from stages.errors import UserError
from stages.journal import Journal
from stages.outbox import Outbox

REPOSITORY = Path(__file__).resolve().parents[1]
CLOSED = "http://127.0.0.1:9"  # nobody listens on the discard port
BOXES = Path(".scratch/journal")


def open_journal(stage="optimize", **facts):
    return Journal(stage, Path("scratch") / stage / "journal", facts.get("config", {}), facts.get("inputs", {}))


def model(name="model", byte=b"x"):
    folder = Path(name)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(byte * 100)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def runs(client, **tags):
    """All runs of the experiment that have these tags."""
    home = client.get_experiment_by_name("prefloop").experiment_id
    return [r for r in client.search_runs([home]) if all(r.data.tags.get(k) == v for k, v in tags.items())]


def points(client, run_id, key):
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))


def box(journal):
    return next(BOXES.glob(f"{journal.stage}-*"))


def test_a_row_has_its_step_and_sorted_names_and_no_clock(client):
    with open_journal() as journal:
        journal.log(0, {"rewards/margins": 1.5, "loss": 0.25})
        journal.log(1, {"loss": float("nan")})
    assert journal.metrics.read_text() == (
        '{"step": 0, "loss": 0.25, "rewards/margins": 1.5}\n{"step": 1, "loss": null}\n'
    )
    history = points(client, journal.run_id, "loss")
    assert history[0] == (0, 0.25)
    assert str(history[1][1]) == "nan"


def test_the_tail_is_the_mean_of_the_last_rows(client):
    journal = open_journal()
    for step, loss in enumerate([9.0, 1.0, float("inf"), 2.0]):
        journal.log(step, {"loss": loss})
    assert journal.tail(3) == {"loss": 1.5}  # (1 + 2) / 2
    journal.close()


def test_a_run_has_parent_params_inputs_tags_and_result(client, monkeypatch):
    Path("in.jsonl").write_text("{}\n")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "flow-1")
    monkeypatch.setenv("PREFLOOP_RECIPE", "simpo")
    config = {"objective": {"name": "simpo", "beta": 2.0}, "text": "y" * 9000}
    journal = open_journal(config=config, inputs={"in.jsonl": Path("in.jsonl")})
    journal.summary({"loss": 0.5})
    journal.close()
    run = client.get_run(journal.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["objective.beta"] == "2.0"
    assert len(run.data.params["text"]) == 6000
    assert run.data.params["text"].endswith(hashlib.md5(b"y" * 9000).hexdigest())
    dataset = run.inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("in.jsonl", hashlib.md5(b"{}\n").hexdigest())
    assert run.data.tags["prefloop.flow_run"] == "flow-1"
    assert run.data.tags["prefloop.recipe"] == "simpo"
    assert run.data.metrics["summary/loss"] == 0.5
    assert run.data.metrics["system/peak_memory_gb"] > 0.01
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.info.status == "FINISHED"
    assert parent.data.params["optimize.learning_rate"] == "5e-07"  # a number, as YAML 1.2 has it
    assert parent.data.metrics["optimize/loss"] == 0.5


def test_stages_of_one_flow_run_share_a_parent_and_others_do_not(client, monkeypatch):
    parents = []
    for stage, flow in (("label", "a"), ("optimize", "a"), ("evaluate", "b")):
        monkeypatch.setenv("PREFLOOP_RUN", flow)
        with open_journal(stage) as journal:
            journal.log(0, {"loss": 1.0})
        parents.append(client.get_run(journal.run_id).data.tags["mlflow.parentRunId"])
    assert parents[0] == parents[1] != parents[2]


def test_tables_images_and_artifacts_are_where_the_page_looks_for_them(client):
    journal = open_journal()
    journal.table("completions", [{"prompt": "p"}, {"prompt": "q"}])
    journal.table("completions", [{"prompt": "p", "chosen": "é"}])  # replaces the first
    journal.image("samples/grid", Image.new("RGB", (4, 4), (255, 0, 0)), step=3)
    journal.artifact(Path("params.yaml"), "config")
    journal.close()
    home = client.get_run(journal.run_id).info.experiment_id
    table = client.load_table(home, "completions.json", run_ids=[journal.run_id])
    assert table.to_dict("records") == [{"prompt": "p", "chosen": "é"}]
    assert json.loads((journal.folder / "tables/completions.json").read_text())["data"] == [["p", "é"]]
    assert {Path(f.path).suffix for f in client.list_artifacts(journal.run_id, "images")} == {".png", ".webp"}
    assert [f.path for f in client.list_artifacts(journal.run_id, "config")] == ["config/params.yaml"]
    assert (journal.folder / "images/samples-grid-3.png").is_file()


def picture(value=1.0, side=8):
    return images.encode(torch.full((1, side, side), value))


def names(client, run_id, under):
    return {Path(f.path).name.split("+")[0] for f in client.list_artifacts(run_id, under)}


def test_pictures_of_a_step_are_one_grid(client):
    """Two rows of tiles of 64 pixels with gaps of 4; a file in the journal and a picture of the series in MLflow."""
    with open_journal() as journal:
        path = journal.images("samples/best", 20, [[picture(), picture(-1.0)], [picture()]])
        large = journal.images("large", 0, [[picture(side=300)]])
        assert journal.images("none", 20, [["", ""], []]) is None
    with Image.open(path) as grid:
        assert grid.size == (2 * 68 + 4, 2 * 68 + 4)
        assert [grid.getpixel(at) for at in ((36, 36), (104, 36), (36, 104))] == [(255,) * 3, (0,) * 3, (255,) * 3]
    with Image.open(large) as grid:
        assert grid.size == (264, 264)
    assert path.name == "samples-best-20.png"
    assert names(client, journal.run_id, "images") == {"samples~best", "large"}


def test_pictures_wait_for_an_unreachable_server(client, monkeypatch):
    reachable = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    with open_journal() as journal:
        journal.images("samples", 5, [[picture()]])
    shutil.rmtree(journal.folder.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", reachable)
    assert mirror.deliver() == 0
    (run,) = runs(client, **{"prefloop.stage": "optimize"})
    assert names(client, run.info.run_id, "images") == {"samples"}


def test_pictures_of_a_table_are_no_text(client):
    row = {"prompt": "p", "image": picture(), "score": 0.5, "latents": "AAAA"}
    with open_journal() as journal:
        path = journal.table("scored", [row, {"prompt": "q", "image": ""}, {"prompt": "r", "before/image": picture()}])
    told = json.loads(path.read_text())
    assert told["columns"] == ["prompt", "score"]
    assert told["data"] == [["p", 0.5], ["q", None], ["r", None]]
    assert names(client, journal.run_id, "images") == {"scored~image", "scored~before~image"}


def test_a_small_checkpoint_is_uploaded_and_a_large_one_only_named(client):
    small, large = model("small"), model("large")
    os.truncate(large / "adapter_model.safetensors", 101 * 2**20)
    with open_journal() as journal:
        journal.checkpoint(small, 10)
        journal.checkpoint(large, 20)
    home = client.get_run(journal.run_id).info.experiment_id
    logged = {made.name: made for made in client.search_logged_models([home])}
    for name, step, expected in (
        ("optimize-step-10", 10, {"adapter_model.safetensors", "adapter_config.json", "reference.json"}),
        ("optimize-step-20", 20, {"adapter_config.json", "reference.json"}),
    ):
        made = logged[name]
        assert made.status == "READY"
        files = Path(made.artifact_location.removeprefix("file://"))
        assert {f.name for f in files.iterdir()} == expected
        outputs = {o.model_id: o.step for o in client.get_run(journal.run_id).outputs.model_outputs}
        assert outputs[made.model_id] == step
    reference = json.loads((files / "reference.json").read_text())
    assert reference["prefloop.md5"] == lineage.digest(large)
    assert reference["bytes"]["adapter_model.safetensors"] == 101 * 2**20
    assert not list(box(journal).glob("files/*"))  # nothing is kept once it is delivered


def publish(scratch, place, **files):
    """What a stage does after its journal has logged the model: more files beside the weights, another place."""
    for name, text in files.items():
        (scratch / f"{name}.json").write_text(text)
    place.parent.mkdir(parents=True, exist_ok=True)
    return scratch.replace(place)


def test_a_policy_is_one_logged_model_from_its_training_to_the_registry(client):
    """Training with a scratch checkpoint each step logs none, its end one, and registering it no second one."""
    layer = torch.nn.Linear(2, 1)
    policy = SimpleNamespace(parameters=lambda: dict(layer.named_parameters()))
    settings = Training(per_device_train_batch_size=1, save_steps=1)

    def loss(examples, epoch):
        return torch.stack([layer(example).square().sum() for example in examples]), {}

    for stage in ("sft", "optimize"):
        with open_journal(stage) as journal:
            rows, about = list(torch.ones(3, 2)), {"seed": 0, "scratch": Path("scratch") / stage, "label": stage}
            loop.train(policy, rows, loss, settings, journal=journal, size=len, **about)
            assert (Path("scratch") / stage / "checkpoint.safetensors").is_file()
            made = model(f"scratch/{stage}/out", stage.encode())
            journal.checkpoint(made, -1)
    place = publish(made, Path("data/optimize"), settings="{}", metrics="{}")
    with open_journal("evaluate") as journal:
        journal.register("policy", place, {"win_rate": 0.6}, True)
    home = client.get_run(journal.run_id).info.experiment_id
    logged = {made.name: made for made in client.search_logged_models([home])}
    assert set(logged) == {"sft-final", "optimize-final"}
    version = client.get_model_version_by_alias("policy", "champion")
    assert version.source == f"models:/{logged['optimize-final'].model_id}"
    assert version.tags["prefloop.path"] == str(place.resolve())
    assert client.get_run(version.run_id).data.tags["prefloop.stage"] == "evaluate"


def test_a_policy_that_no_stage_logged_is_logged_when_it_is_registered(client):
    with open_journal("evaluate") as journal:
        journal.register("policy", model(), {}, True)
    home = client.get_run(journal.run_id).info.experiment_id
    (made,) = client.search_logged_models([home])
    assert made.status == "READY"
    assert client.get_model_version_by_alias("policy", "champion").source == f"models:/{made.model_id}"


def test_champion_moves_only_through_the_gate(client):
    champions = []
    for number, passed in enumerate((True, False, True)):
        with open_journal(f"evaluate-r{number}") as journal:
            journal.register("policy", model(f"m{number}", b"%d" % number), {"win_rate": 0.5 + number}, passed)
        champions.append(client.get_model_version_by_alias("policy", "champion").version)
    assert [int(c) for c in champions] == [1, 1, 3]
    latest = client.get_model_version_by_alias("policy", "latest")
    assert int(latest.version) == 3
    assert latest.tags["metric.win_rate"] == "2.5"
    assert latest.tags["prefloop.md5"] == lineage.digest(Path("m2"))
    assert client.get_run(latest.run_id).data.tags["prefloop.stage"] == "evaluate-r2"


def test_an_older_model_that_is_delivered_late_does_not_become_champion(client, monkeypatch):
    reachable = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    older = open_journal("evaluate-r0")
    older.register("policy", model("older", b"0"), {}, True)
    time.sleep(0.01)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", reachable)
    with open_journal("evaluate-r1") as newer:  # the older process still lives and keeps its outbox
        newer.register("policy", model("newer", b"1"), {}, True)
    older.close()
    held = client.get_model_version_by_alias("policy", "champion")
    assert held.tags["prefloop.stage"] == "evaluate-r1"
    assert len(client.search_model_versions("name = 'policy'")) == 2


def use_everything(journal):
    for step in range(5):
        journal.log(step, {"loss": 1.0 / (step + 1), "kl": step})
    journal.table("completions", [{"prompt": "p"}])
    journal.image("grid", Image.new("RGB", (4, 4)), step=1)
    folder = model()
    journal.checkpoint(folder, 4)
    journal.register("policy", folder, {"win_rate": 0.6}, True)
    shutil.rmtree(folder)  # what is owed to MLflow does not hang on the stage's files
    journal.close()
    shutil.rmtree(journal.folder.parent)  # as a stage does when it has published


def inventory(client):
    """Everything that MLflow holds of the one stage run."""
    (run,) = runs(client, **{"prefloop.stage": "optimize"})
    home, run_id = run.info.experiment_id, run.info.run_id
    return {
        "status": run.info.status,
        "loss": points(client, run_id, "loss"),
        "kl": points(client, run_id, "kl"),
        "runs": len(client.search_runs([home])),
        "inputs": len(run.inputs.dataset_inputs),
        "outputs": len(run.outputs.model_outputs),
        "models": sorted(made.name for made in client.search_logged_models([home])),
        "versions": [v.tags["prefloop.md5"] for v in client.search_model_versions("name = 'policy'")],
        "table": len(client.load_table(home, "completions.json", run_ids=[run_id])),
        "images": len(client.list_artifacts(run_id, "images")),
    }


def test_an_unreachable_server_delays_and_does_not_lose(client, monkeypatch, caplog):
    reachable = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        journal = open_journal(inputs={"params.yaml": Path("params.yaml")})
        use_everything(journal)
    assert time.monotonic() - began < 10
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage()
    assert mirror.deliver() == 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", reachable)
    assert mirror.deliver() == 0
    found = inventory(client)
    assert found == {
        "status": "FINISHED",
        "loss": [(step, 1.0 / (step + 1)) for step in range(5)],
        "kl": [(step, float(step)) for step in range(5)],
        "runs": 2,
        "inputs": 1,
        "outputs": 1,
        "models": ["optimize-step-4"],  # what is registered has been uploaded already
        "versions": [hashlib.md5(_listing()).hexdigest() + ".dir"],
        "table": 1,
        "images": 2,
    }
    assert list(BOXES.iterdir()) == []  # all is delivered and the stage has gone


def _listing():
    """What DVC hashes for the folder that `model` makes: its files by name, in JSON."""
    digests = {"adapter_config.json": hashlib.md5(b"{}"), "adapter_model.safetensors": hashlib.md5(b"x" * 100)}
    return json.dumps([{"md5": d.hexdigest(), "relpath": name} for name, d in digests.items()]).encode()


@pytest.mark.parametrize("killed_after", range(1, 13))
def test_an_event_sent_again_changes_nothing(client, monkeypatch, killed_after):
    """A kill between a delivery and its cursor, after each event in turn: it is sent twice, and is there once."""
    reachable = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", CLOSED)
    use_everything(open_journal(inputs={"params.yaml": Path("params.yaml")}))
    shutil.copytree(BOXES, "before")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", reachable)
    mirror.deliver()
    expected = inventory(client)

    shutil.copytree("before", BOXES, dirs_exist_ok=True)
    (again,) = (Outbox(folder) for folder in BOXES.iterdir())
    ends = [cursor for _, cursor in again.waiting()]
    (run,) = runs(client, **{"prefloop.stage": "optimize"})
    if killed_after > 1:  # the first event is the one that finds the run
        again.state |= {"parent": run.data.tags["mlflow.parentRunId"], "experiment": run.info.experiment_id}
        again.save(run_id=run.info.run_id, cursor=ends[killed_after - 2])
    assert mirror.deliver() == 0
    assert inventory(client) == expected


CHILD = """
import os, signal, sys
from pathlib import Path
from stages.journal import Journal
journal = Journal("optimize", Path("scratch/optimize/journal"), {}, {})
for step in range(8):
    journal._sender._next = 0  # deliver at once, so that MLflow is ahead of the checkpoint
    journal.log(step, {"loss": 1 / (step + 1)})
journal.metrics.open("a").write('{"step": 8, "lo')
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_and_resumed_is_the_same_file_and_each_point_once(client):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    died = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    first = json.loads(Path("scratch/optimize/journal/run.json").read_text())["run_id"]

    journal = open_journal()
    journal.rewind(4)  # the checkpoint is that of step 4
    for step in range(5, 10):
        journal.log(step, {"loss": 1 / (step + 1)})
    journal.close()
    with open_journal("whole") as whole:
        for step in range(10):
            whole.log(step, {"loss": 1 / (step + 1)})
    assert journal.metrics.read_bytes() == whole.metrics.read_bytes()
    assert journal.run_id == first
    assert points(client, first, "loss") == [(step, 1 / (step + 1)) for step in range(10)]
    run = client.get_run(first)
    assert run.info.status == "FINISHED"
    assert run.data.tags["prefloop.resumed"] == "true"


APART = """
import os, signal, sys
from pathlib import Path
from stages.journal import Journal
journal = Journal("optimize", Path("scratch/optimize/journal"), {}, {}, apart=True)
for step in range(3):
    journal.log(step, {"loss": 1 / (step + 1)})
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
journal.close()
assert journal.run_id or sys.argv[1] == "unreachable"
assert "mlflow" not in sys.modules
"""


def apart(how: str, **environment: str) -> subprocess.CompletedProcess:
    """A stage whose journal is delivered by a process of its own; returns when both have ended."""
    given = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    return subprocess.run([sys.executable, "-c", APART, how], env=given, capture_output=True, text=True)


def test_a_process_of_its_own_delivers_and_the_stage_does_not_import_mlflow(client):
    done = apart("to its end")
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = runs(client, **{"prefloop.stage": "optimize"})
    assert run.info.status == "FINISHED"
    assert points(client, run.info.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(3)]


def test_what_a_killed_stage_has_said_is_delivered_and_its_run_goes_on(client):
    assert apart("killed").returncode == -signal.SIGKILL
    (run,) = runs(client, **{"prefloop.stage": "optimize"})
    assert run.info.status == "RUNNING"
    assert points(client, run.info.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(3)]
    with open_journal() as journal:
        journal.rewind(2)
        journal.log(3, {"loss": 0.25})
    assert journal.run_id == run.info.run_id
    assert points(client, run.info.run_id, "loss") == [(step, 1 / (step + 1)) for step in range(4)]


def test_a_process_of_its_own_warns_once_and_a_later_run_delivers(client):
    done = apart("unreachable", MLFLOW_TRACKING_URI=CLOSED)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "does not take the journal, a later run delivers it" in done.stderr
    assert mirror.deliver() == 0
    (run,) = runs(client, **{"prefloop.stage": "optimize"})
    assert run.info.status == "FINISHED"


def test_without_a_checkpoint_the_first_row_starts_the_file_over(client):
    journal = open_journal()
    journal.log(0, {"loss": 1.0})
    journal.log(1, {"loss": 0.5})
    journal.close("FAILED")
    journal = open_journal()
    journal.log(0, {"loss": 1.0})
    journal.close()
    assert journal.metrics.read_text() == '{"step": 0, "loss": 1.0}\n'


def test_a_run_whose_process_died_is_marked_killed_by_the_next_journal(client):
    died = open_journal("label")
    died._outbox.release()  # what the system does when a process dies
    with open_journal("optimize"):
        pass
    assert client.get_run(died.run_id).info.status == "KILLED"


def test_another_store_gets_the_whole_history(client, tmp_path, monkeypatch, empty_database):
    journal = open_journal()
    journal.log(0, {"loss": 1.0})
    journal.close("KILLED")
    shutil.copy(empty_database, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    journal = open_journal()
    journal.rewind(0)
    journal.log(1, {"loss": 0.5})
    journal.close()
    assert points(MlflowClient(f"sqlite:///{tmp_path}/other.db"), journal.run_id, "loss") == [(0, 1.0), (1, 0.5)]


def test_two_processes_do_not_write_one_journal(client):
    journal = open_journal()
    with pytest.raises(UserError, match="another process"):
        open_journal()
    journal.close()


def test_an_exception_ends_the_run_as_failed(client):
    with pytest.raises(ZeroDivisionError), open_journal() as journal:
        journal.log(0, {"loss": 1 / 0})
    assert client.get_run(journal.run_id).info.status == "FAILED"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_line(client):
    journal = open_journal()
    journal.metrics.symlink_to("/dev/full")
    with pytest.raises(UserError, match="no space left on the disk; free some space") as error:
        journal.log(0, {"loss": 1.0})
    assert "\n" not in str(error.value)
    journal.close("FAILED")


def test_digests_are_those_of_dvc(client):
    folder = Path("data")
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "1.txt").write_text("one")
    (folder / "b-2.txt").write_text("two")
    (folder / "a.txt").write_text("three")
    dvc = [sys.executable, "-m", "dvc"]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    for words in (["init", "-q", "--no-scm"], ["add", "-q", "data", "params.yaml"]):
        subprocess.run([*dvc, *words], check=True, env=environment)
    assert f"md5: {lineage.digest(folder)}\n" in Path("data.dvc").read_text()
    assert f"md5: {lineage.digest(Path('params.yaml'))}\n" in Path("params.yaml.dvc").read_text()


def test_a_digest_is_taken_from_the_lock_unless_the_size_says_it_is_stale(client):
    Path("in.jsonl").write_text("12345")
    entry = "stages:\n  label:\n    outs:\n    - path: in.jsonl\n      md5: 'abc'\n      size: {}\n"
    Path("dvc.lock").write_text(entry.format(5))
    assert lineage.digest(Path("in.jsonl"), "in.jsonl") == "abc"
    Path("dvc.lock").write_text(entry.format(6))
    assert lineage.digest(Path("in.jsonl"), "in.jsonl") == hashlib.md5(b"12345").hexdigest()
    with pytest.raises(UserError, match="no such input"):
        lineage.digest(Path("gone.jsonl"))
