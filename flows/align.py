"""The pipeline flow: one Prefect task per DVC stage, in order.

    python -m flows.align                                reproduce the workspace, as `dvc repro` would
    python -m flows.align --recipe simpo --seed 1        run an experiment in a workspace of its own

Without recipe, seed and settings the flow works in the folder itself, whose params.yaml is what is reproduced. With
any of them it leaves that folder alone and runs a DVC experiment (`flows/experiments.py`). DVC decides whether a stage
runs, Prefect when and where; tasks cache nothing. Stages that train or generate carry the tag `gpu`: give the tag a
concurrency limit (`prefect concurrency-limit create gpu 1`) to share the GPUs of a machine between runs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from prefect import Task, flow, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed, State

from flows import cli, dvc, experiments, tracking
from stages.errors import UserError

Run = Callable[[list[str]], None]  # runs stages by name
Course = Callable[[Path, Run], None]  # in which order a workspace's stages are run
GPU = {"generate", "label", "reward", "sft", "reference", "optimize", "selfplay", "evaluate"}


@dataclass
class Timer:
    """Seconds that each stage took, and whether it ran or was up to date."""

    rows: list[tuple[str, float, bool]] = field(default_factory=list)

    def table(self) -> str:
        """The stages as a Markdown table."""
        lines = [f"| {stage} | {seconds:.1f} | {'ran' if ran else 'up to date'} |" for stage, seconds, ran in self.rows]
        return "\n".join(["| stage | seconds | |", "|---|---:|---|", *lines])


def worth_another_try(task: Task, run: TaskRun, state: State) -> bool:
    """Whether a stage that failed may do better a second time; a user's mistake would be made again."""
    return not isinstance(state.data, UserError)


def without_empty_traceback(record: logging.LogRecord) -> bool:
    """Take `NoneType: None` off what Prefect logs of a task that failed without an exception."""
    if record.exc_info and record.exc_info[0] is None:
        record.exc_info = None
    return True


logging.getLogger("prefect.task_runs").addFilter(without_empty_traceback)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{stage}")
def reproduce(workspace: Path, stage: str, env: dict[str, str]) -> bool | State:
    """Bring one stage up to date; returns whether it ran."""
    try:
        return dvc.repro(workspace, stage, env=env, report=get_run_logger().info)
    except UserError as error:
        return Failed(message=str(error), data=error)


def run_stages(workspace: Path, names: list[str], env: dict[str, str], retries: int, timer: Timer) -> None:
    """Run stages in order, each as a task, with a progress artifact.

    Raises:
        UserError, DvcError: as the first stage that failed.
    """
    env = {**env, "PREFLOOP_FLOW_RUN": flow_run.get_id() or ""}
    progress = create_progress_artifact(0.0, key="progress", description=env["PREFLOOP_RUN"] or "workspace")
    assert isinstance(progress, UUID)
    for number, stage in enumerate(names, 1):
        tags = ["gpu"] if stage.partition("@")[0] in GPU else []
        configured = reproduce.with_options(
            tags=tags, retries=retries, retry_delay_seconds=5, retry_condition_fn=worth_another_try
        )
        start = time.monotonic()
        ran = configured(workspace, stage, env, return_state=True).result()
        timer.rows.append((stage, time.monotonic() - start, ran is True))
        update_progress_artifact(progress, 100.0 * number / len(names))


def publish(metrics: dict[str, float], timer: Timer, report: Path) -> None:
    """Show the metrics, the time of each stage and the report as artifacts of the flow run."""
    lines = [f"| {key} | {value:.4g} |" for key, value in metrics.items()]
    table = "\n".join(["| metric | value |", "|---|---:|", *lines])
    create_markdown_artifact(f"{table}\n\n{timer.table()}", key="metrics", description=flow_run.get_name() or "")
    if report.exists():
        create_link_artifact(report.resolve().as_uri(), link_text="report", key="report")


@flow(persist_result=False, validate_parameters=True)
def align(
    recipe: str | None = None, seed: int | None = None, settings: list[str] | None = None, retries: int = 0
) -> dict[str, float] | State:
    """Align one policy; returns the metrics of its evaluation.

    Args:
        recipe: name of a recipe, `flows/recipes/*/NAME.yaml`.
        seed: `run.seed`.
        settings: further `stage.setting=value` settings.
        retries: how often a stage that fails is tried again; a stage that refuses its input is not.
    """
    root = Path.cwd()
    try:
        if recipe is None and seed is None and not settings:
            return _workspace(root, retries)
        return conduct(experiments.plan(root, recipe, seed, settings or []), recipe or "", retries)
    except UserError as error:
        return Failed(message=str(error), data=error)


@flow(persist_result=False)
def planned(plan: experiments.Experiment, recipe: str, retries: int = 0) -> dict[str, float] | State:
    """Run an experiment that was planned before; returns the metrics of its evaluation."""
    try:
        return conduct(plan, recipe, retries)
    except UserError as error:
        return Failed(message=str(error), data=error)


def _workspace(root: Path, retries: int) -> dict[str, float]:
    timer, env = Timer(), tracking.environment(root)
    dvc.pull(root, get_run_logger().info)
    run_stages(root, dvc.stages(root), env, retries, timer)
    dvc.push(root, get_run_logger().info)
    metrics = experiments.measured(root)
    publish(metrics, timer, root / experiments.REPORT)
    return metrics


def straight(workspace: Path, run: Run) -> None:
    """Run every stage of the pipeline, in order."""
    run(dvc.stages(workspace))


def conduct(plan: experiments.Experiment, recipe: str, retries: int, course: Course = straight) -> dict[str, float]:
    """Run an experiment in its workspace, or find it finished; returns its metrics."""
    timer, log = Timer(), get_run_logger().info
    log(f"experiment {plan.name}")
    metrics = experiments.finished(plan)
    if metrics is None:
        workspace = experiments.enter(plan)
        env = tracking.environment(plan.root, run=plan.name, recipe=recipe)
        dvc.pull(workspace, log)
        dvc.forget_lost(workspace)
        course(workspace, lambda names: run_stages(workspace, names, env, retries, timer))
        dvc.push(workspace, log)
        metrics = experiments.leave(plan)
    else:
        log(f"it was finished before; bring it back by `dvc exp apply {plan.name}`")
    publish(metrics, timer, plan.results / experiments.REPORT.name)
    return metrics


def main(
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe.")] = None,
    seed: Annotated[int | None, typer.Option(help="run.seed")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="stage.setting=value, repeatable.")] = None,
    retries: Annotated[int, typer.Option(help="Tries after a failure.")] = 0,
) -> None:
    """Reproduce the workspace or, with a recipe, a seed or settings, run an experiment."""
    metrics = cli.run(align, recipe=recipe, seed=seed, settings=settings, retries=retries)
    cli.show(metrics)


if __name__ == "__main__":
    typer.run(main)
