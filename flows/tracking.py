"""Lineage: one MLflow store for every workspace, and the words by which a stage's run names its flow run and recipe."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

EXPERIMENT = "prefloop"
TAG = re.compile(r"[^\w./ -]")  # what MLflow takes in no name


def environment(root: Path, *, run: str = "", recipe: str = "") -> dict[str, str]:
    """What a stage finds in its environment beside PREFLOOP_FLOW_RUN; a user's own MLflow settings stay."""
    return {
        "MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{root.resolve()}/mlflow.db"),
        "MLFLOW_EXPERIMENT_NAME": os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT),
        "PREFLOOP_RUN": run,
        "PREFLOOP_RECIPE": recipe,
    }


def log_sweep(
    root: Path, name: str, rows: list[dict[str, Any]], labels: tuple[str, ...], axes: tuple[str, ...], folder: Path
) -> str:
    """Log a comparison as one parent run with a child per experiment; returns the parent's run id.

    A child is the pipeline run that the experiment's stages logged to; where they logged none it is made.

    Args:
        root: the repository.
        name: name of the sweep; the same name finds the same parent.
        rows: one an experiment; what is not a label is a metric.
        labels: keys that become params, `experiment` among them.
        axes: keys that become tags, which another sweep over the same experiment may set to other names.
        folder: where the files of the comparison are.
    """
    from mlflow import MlflowClient  # late: a second of imports
    from mlflow.entities import Metric, Param
    from mlflow.utils.time import get_current_time_millis

    env = environment(root)
    client = MlflowClient(env["MLFLOW_TRACKING_URI"])
    home = _experiment(client, env["MLFLOW_EXPERIMENT_NAME"], root)
    parent = _run(client, home, "prefloop.sweep", name)
    for row in rows:
        child = _run(client, home, "prefloop.pipeline", row["experiment"])
        client.set_tag(child, "mlflow.parentRunId", parent)
        now = get_current_time_millis()
        metrics = [Metric(key, float(value), now, 0) for key, value in row.items() if key not in (*labels, *axes)]
        for axis in axes:
            client.set_tag(child, f"sweep.{TAG.sub('_', axis)}", row[axis])
        client.log_batch(child, metrics=metrics, params=[Param(f"sweep.{key}", str(row[key])) for key in labels])
        client.set_terminated(child)
    for file in sorted(folder.iterdir()):
        client.log_artifact(parent, str(file))
    client.set_terminated(parent)
    return parent


def _run(client: Any, home: str, tag: str, value: str) -> str:
    """Id of the run that bears a tag, made on first use."""
    found = client.search_runs([home], f"tags.`{tag}` = '{value}'", order_by=["attributes.start_time ASC"])
    return (found[0] if found else client.create_run(home, tags={tag: value}, run_name=value)).info.run_id


def _experiment(client: Any, name: str, root: Path) -> str:
    """Id of an MLflow experiment, made on first use; with a local store its artifacts lie beside it."""
    found = client.get_experiment_by_name(name)
    if found:
        return found.experiment_id
    beside = (root / "mlartifacts").resolve().as_uri() if client.tracking_uri.startswith("sqlite:") else None
    return client.create_experiment(name, artifact_location=beside)
