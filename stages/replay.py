"""One function for each kind of event: it does in MLflow what the journal wrote down.

Every call names its run. What MLflow would add twice (runs, models, versions, images) is looked for first; the rest
(points with their own time, tags, files) is the same however often it is sent.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stages.outbox import Event, Outbox

MANY = 900  # metrics a request; MLflow takes 1,000


def _experiment(client: Any) -> str:
    """Id of the experiment, made at first use. Of a local database, the files lie in `mlartifacts` beside it."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "prefloop"
    known = client.get_experiment_by_name(name)
    if known:
        return known.experiment_id
    where = client.tracking_uri
    beside = Path(where.removeprefix("sqlite:///")).resolve().parent / "mlartifacts"
    files = beside.as_uri() if where.startswith("sqlite:") else None
    return client.create_experiment(name, files)


def _tagged(client: Any, home: str, tag: str, value: str) -> Any:
    found = client.search_runs([home], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time ASC"])
    return found[0] if found else None


def start(client: Any, outbox: Outbox, events: list[Event]) -> None:
    """Find or make the pipeline's run and the stage's run below it."""
    event, home = events[0], _experiment(client)
    facts = event["tags"]
    parent = _tagged(client, home, "prefloop.pipeline", facts["prefloop.key"])
    if parent is None:
        shared = {k: v for k, v in facts.items() if k not in ("prefloop.stage", "prefloop.journal")}
        about = {**shared, "prefloop.pipeline": facts["prefloop.key"]}
        parent = client.create_run(home, event["time"], about, run_name=event["pipeline_name"])
        _params(client, parent.info.run_id, event["pipeline"])
    run = _tagged(client, home, "prefloop.journal", facts["prefloop.journal"])
    if run is None:
        about = {**facts, "mlflow.parentRunId": parent.info.run_id}
        run = client.create_run(home, event["time"], about, run_name=facts["prefloop.stage"])
    outbox.save(run_id=run.info.run_id, parent=parent.info.run_id, experiment=home)
    _params(client, run.info.run_id, event["params"])
    _inputs(client, run.info.run_id, facts["prefloop.stage"], event["inputs"])


def _params(client: Any, run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    pairs = [Param(_key(key), value) for key, value in params.items()]
    for first in range(0, len(pairs), 100):  # MLflow takes 100 a request
        client.log_batch(run_id, params=pairs[first : first + 100])


def _key(name: str) -> str:
    """A name in the letters that MLflow takes, at most 250 of them."""
    return "".join(c if c.isalnum() and c.isascii() or c in "_-. /" else "_" for c in name)[:250]


def _inputs(client: Any, run_id: str, stage: str, inputs: list[Event]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    datasets = [
        DatasetInput(
            Dataset(entry["name"], entry["digest"], "local", json.dumps({"uri": entry["path"]})),
            [InputTag("mlflow.data.context", stage)],
        )
        for entry in inputs
    ]
    if datasets:
        client.log_inputs(run_id, datasets)


def metrics(client: Any, outbox: Outbox, events: list[Event]) -> None:
    """Points of many steps in one request."""
    from mlflow.entities import Metric

    points = [
        Metric(_key(key), float(value), event["time"], event["step"])
        for event in events
        for key, value in event["values"].items()
    ]
    for first in range(0, len(points), MANY):  # one step alone may have more than a request takes
        client.log_batch(outbox.state["run_id"], metrics=points[first : first + MANY])


def summary(client: Any, outbox: Outbox, events: list[Event]) -> None:
    """A stage's result: in its own run, and in the pipeline's, where whole recipes are compared."""
    from mlflow.entities import Metric

    event = events[0]
    for run_id, under in ((outbox.state["run_id"], "summary"), (outbox.state["parent"], event["stage"])):
        points = [Metric(_key(f"{under}/{k}"), float(v), event["time"], 0) for k, v in event["values"].items()]
        client.log_batch(run_id, metrics=points)


def status(client: Any, outbox: Outbox, events: list[Event]) -> None:
    """The pipeline's run has the status of the stage that spoke last."""
    event = events[0]
    for run_id in (outbox.state["run_id"], outbox.state["parent"]):
        if event["status"] == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, event["status"], event["time"])
    for key, value in event.get("tags", {}).items():
        client.set_tag(outbox.state["run_id"], key, value)


def file(client: Any, outbox: Outbox, events: list[Event]) -> None:
    """A file or a folder; a table is also named in the tag by which MLflow's page finds it."""
    event, run_id = events[0], outbox.state["run_id"]
    client.log_artifacts(run_id, str(outbox.folder / event["kept"]), event["under"] or None)
    if event["shown"] == "table":
        known = json.loads(client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": event["path"], "type": "table"}
        if entry not in known:
            client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*known, entry]))


def image(client: Any, outbox: Outbox, events: list[Event]) -> None:
    """A picture of a series over steps."""
    from PIL import Image

    event, run_id = events[0], outbox.state["run_id"]
    mark = f"{event['key'].replace('/', '~')}+step+{event['step']}+timestamp+{event['time']}+"
    if any(Path(entry.path).name.startswith(mark) for entry in client.list_artifacts(run_id, "images")):
        return
    with Image.open(outbox.folder / event["kept"] / "image.png") as picture:
        client.log_image(
            run_id, picture, key=event["key"], step=event["step"], timestamp=event["time"], synchronous=True
        )


def _model(client: Any, outbox: Outbox, name: str) -> Any:
    """The logged model of this run and name, if there is one."""
    wish = f"name = '{name}' AND source_run_id = '{outbox.state['run_id']}'"
    return next(iter(client.search_logged_models([outbox.state["experiment"]], wish)), None)


def _same(client: Any, outbox: Outbox, weights: str) -> Any:
    """The newest whole logged model of these weights, whichever run made it."""
    home, wish = outbox.state["experiment"], f"tags.`prefloop.weights` = '{weights}'"
    newest = [{"field_name": "creation_timestamp", "ascending": False}]
    found = client.search_logged_models([home], wish, order_by=newest)
    return next((model for model in found if model.status == "READY"), None)


def checkpoint(client: Any, outbox: Outbox, events: list[Event]) -> None:
    """A logged model, READY when all its files are there; a known one is not logged twice."""
    from mlflow.entities import LoggedModelOutput

    event, run_id = events[0], outbox.state["run_id"]
    model = _model(client, outbox, event["name"])
    if model is None and event.get("known") and _same(client, outbox, event["tags"]["prefloop.weights"]):
        return
    if model is None:
        home = outbox.state["experiment"]
        model = client.create_logged_model(home, event["name"], run_id, event["tags"], model_type=event["type"])
    if model.status != "READY":
        client.log_model_artifacts(model.model_id, str(outbox.folder / event["kept"]))
        client.finalize_logged_model(model.model_id, "READY")
    if all(made.model_id != model.model_id for made in client.get_run(run_id).outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, event["step"])])


def version(client: Any, outbox: Outbox, events: list[Event]) -> None:
    """A registered version of a logged model; `champion` moves only if the gate was passed."""
    from mlflow.entities import Metric

    event, run_id, name = events[0], outbox.state["run_id"], events[0]["name"]
    model = _model(client, outbox, event["model"]) or _same(client, outbox, event.get("weights", ""))
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    mark = f"{outbox.folder.name}:{event['model']}"
    found = client.search_model_versions(f"name = '{name}' AND tags.`prefloop.event` = '{mark}'")
    about = {**event["tags"], "prefloop.event": mark, "prefloop.time": event["time"], "prefloop.run": run_id}
    about |= {"prefloop.parent": outbox.state["parent"], "prefloop.gate_passed": str(event["gate_passed"]).lower()}
    about |= {f"metric.{_key(key)}": value for key, value in event["metrics"].items()}
    if found:
        made = found[0]
    else:
        facts = {"run_id": run_id, "tags": about, "model_id": model.model_id, "await_creation_for": 0}
        made = client.create_model_version(name, model.model_uri, **facts)
    points = [
        Metric(_key(key), float(value), event["time"], 0, model_id=model.model_id, run_id=run_id)
        for key, value in event["metrics"].items()
    ]
    client.log_batch(run_id, metrics=points)
    if event["gate_passed"]:
        _crown(client, name, made.version, event["time"])


def _crown(client: Any, name: str, number: str, time: int) -> None:
    """Make a version the champion, unless the champion was registered later (and delivered sooner)."""
    held = client.get_registered_model(name).aliases.get("champion")
    if held is None or int(client.get_model_version(name, held).tags.get("prefloop.time", 0)) <= time:
        client.set_registered_model_alias(name, "champion", number)
