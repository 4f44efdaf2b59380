"""Many recipes x seeds, one comparison: `python -m flows.sweep --recipes dpo,ipo,simpo --seeds 2`.

Every recipe x seed is a DVC experiment of its own (`flows/align.py`), planned at the start, so that edits and commits
meanwhile touch none of them, and run one after the other; one that was finished before is not run again, so that a
sweep that was stopped is simply started again. The comparison, a Markdown table and
a plot, is written to `experiments/<name>/` and logged to MLflow as a parent run with a child per experiment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.states import Failed, State

from flows import cli, experiments, tracking
from flows.align import planned
from stages.errors import UserError
from stages.evaluate import report

LABELS = ("recipe", "seed", "experiment")


@flow(persist_result=False)
def sweep(
    recipes: list[str],
    seeds: int = 1,
    settings: list[str] | None = None,
    name: str | None = None,
    retries: int = 0,
) -> list[dict[str, Any]] | State:
    """Run every recipe with every seed and compare; returns one row an experiment: LABELS and metrics.

    Args:
        recipes: names of recipes.
        seeds: how many; they are 0, 1, ...
        settings: `stage.setting=value` settings common to all.
        name: folder of the comparison under `experiments/`.
        retries: how often a stage that fails is tried again.
    """
    try:
        plans = [
            (recipe, seed, experiments.plan(Path.cwd(), recipe, seed, settings or []))
            for recipe in recipes
            for seed in range(seeds)
        ]
        if not plans:
            raise UserError("nothing to run", where="sweep", mend="name at least one recipe and one seed")
    except UserError as error:  # every mistake in a recipe or setting is found before the first experiment starts
        return Failed(message=str(error), data=error)
    rows: list[dict[str, Any]] = []
    failed = {}
    for recipe, seed, plan in plans:  # a failure leaves the others to run
        rows.append({"recipe": recipe, "seed": seed, "experiment": plan.name})
        state: State = planned(plan, recipe, retries, return_state=True)
        if state.is_completed():
            rows[-1] |= state.result()
        else:
            failed[plan.name] = state.message
    done = [row for row in rows if len(row) > len(LABELS)]
    if done:
        _compare(Path.cwd(), name or title(recipes), done)
    if failed:
        lines = "; ".join(f"{experiment}: {message}" for experiment, message in failed.items())
        return Failed(message=f"{len(failed)} of {len(rows)} experiments failed: {lines}")
    return rows


def title(recipes: list[str]) -> str:
    """The name of a sweep that was given none.

    >>> title(["dpo", "image/ddpo"])
    'sweep-dpo-image-ddpo'
    """
    return "-".join(["sweep", *recipes]).replace("/", "-")


def _compare(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder = experiments.kept(root, name)
    report.comparison(rows, folder)
    create_markdown_artifact((folder / "comparison.md").read_text(encoding="utf-8"), key="comparison", description=name)
    run = tracking.log_sweep(root, name, rows, LABELS, folder)
    get_run_logger().info(f"comparison of {len(rows)} experiments: {folder} and MLflow run {run}")


def main(
    recipes: Annotated[str, typer.Option(help="Names of recipes, with commas between.")],
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 1,
    settings: Annotated[list[str] | None, typer.Option("--set", help="stage.setting=value, repeatable.")] = None,
    name: Annotated[str | None, typer.Option(help="Folder of the comparison under experiments/.")] = None,
    retries: Annotated[int, typer.Option(help="Tries after a failure.")] = 0,
) -> None:
    """Run recipes x seeds and compare them."""
    chosen = [recipe.strip() for recipe in recipes.split(",") if recipe.strip()]
    cli.run(sweep, recipes=chosen, seeds=seeds, settings=settings, name=name, retries=retries)
    print((experiments.kept(Path.cwd(), name or title(chosen)) / "comparison.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
