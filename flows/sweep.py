"""Many recipes x seeds, one comparison: `python -m flows.sweep --recipes dpo,ipo,simpo --seeds 2`.

With `--grid label.flip=0,0.2` every recipe is run at every value too, with `--study dpo_variants` the recipes and axes
of a file in `flows/studies/` (`flows/grid.py`); a grid may be laid over a study.

Every cell is a DVC experiment of its own (`flows/align.py`), planned at the start, so that edits and commits meanwhile
touch none of them, and run one after the other, seed by seed; one that was finished before is not run again, so that a
sweep that was stopped is simply started again. The comparison, a Markdown table and a plot, is written to
`experiments/<name>/` and logged to MLflow as a parent run with a child per experiment; where there are axes, so is
`study.md` with its plots (`stages/evaluate/study.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.states import Failed, State

from flows import cli, experiments, grid, tracking
from flows.align import planned
from flows.experiments import Experiment
from flows.grid import Cell, Study
from stages.errors import UserError
from stages.evaluate import report
from stages.evaluate import study as reading

LABELS = grid.TAKEN


@flow(persist_result=False)
def sweep(
    recipes: list[str] | None = None,
    seeds: int = 1,
    settings: list[str] | None = None,
    name: str | None = None,
    retries: int = 0,
    study: str | None = None,
    axes: list[str] | None = None,
) -> list[dict[str, Any]] | State:
    """Run every recipe at every level with every seed and compare; returns one row an experiment: labels and metrics.

    Args:
        recipes: names of recipes; a study has its own.
        seeds: how many; they are 0, 1, ...
        settings: `stage.setting=value` settings common to all.
        name: folder of the comparison under `experiments/`.
        retries: how often a stage that fails is tried again.
        study: name of a file in `flows/studies/`.
        axes: `stage.setting=value,value`, each an axis.
    """
    try:
        asked = ask(recipes or [], study, axes or [])
        plans = lay_out(Path.cwd(), asked, seeds, settings or [])
    except UserError as error:  # every mistake in a recipe or setting is found before the first experiment starts
        return Failed(message=str(error), data=error)
    rows: list[dict[str, Any]] = []
    failed = {}
    for cell, seed, plan in plans:  # a failure leaves the others to run
        state: State = planned(plan, cell.recipe, retries, return_state=True)
        row = {"recipe": cell.recipe, **cell.levels, "seed": seed, "experiment": plan.name}
        if state.is_completed():
            rows.append(row | state.result())
        else:
            failed[plan.name] = state.message
    if rows:
        compare(Path.cwd(), name or title(recipes or [], study, axes or []), rows, asked)
    if failed:
        lines = "; ".join(f"{experiment}: {message}" for experiment, message in failed.items())
        return Failed(message=f"{len(failed)} of {len(plans)} experiments failed: {lines}")
    return rows


def ask(recipes: list[str], study: str | None, axes: list[str]) -> Study:
    """What is to be run: a study, or recipes, and further axes.

    Raises:
        UserError: both or neither, or an axis twice.
    """
    if bool(recipes) == bool(study):
        mend = "name either recipes or a study"
        raise UserError("both recipes and a study" if study else "nothing to run", where="sweep", mend=mend)
    asked = grid.load(study) if study else Study({recipe: {} for recipe in recipes})
    found = dict(asked.axes)
    for text in axes:
        axis, levels = grid.axis(text)
        if axis in found:
            raise UserError(f"axis '{axis}' is there already", where=f"--grid {text}", mend="leave one out")
        found[axis] = levels
    return dataclasses.replace(asked, axes=found)


def lay_out(root: Path, asked: Study, seeds: int, settings: list[str]) -> list[tuple[Cell, int, Experiment]]:
    """One experiment a cell and seed, all of the same code; seed by seed, so that what was stopped has whole seeds.

    Raises:
        UserError: naming the cell whose params are at fault, or two cells that are the same.
    """
    cells, at = grid.cells(asked), experiments.code(root)
    found: dict[str, tuple[Cell, int, Experiment]] = {}
    for seed in range(seeds):
        for cell in cells:
            try:
                plan = experiments.plan(root, cell.recipe, seed, settings, overlay=cell.overlay, at=at)
            except UserError as error:
                raise UserError(error.what, where=f"{cell}: {error.where}", mend=error.mend) from None
            if plan.name in found:
                mend = "change something in one of them, or leave it out"
                raise UserError(f"is the same setting as {found[plan.name][0]}", where=str(cell), mend=mend)
            found[plan.name] = (cell, seed, plan)
    if not found:
        raise UserError("nothing to run", where="sweep", mend="name at least one recipe and one seed")
    return list(found.values())


def title(recipes: list[str], study: str | None = None, axes: list[str] | None = None) -> str:
    """The name of a sweep that was given none.

    >>> title(["dpo", "image/ddpo"]), title([], "dpo_variants")
    ('sweep-dpo-image-ddpo', 'dpo_variants')
    >>> title(["rdpo"], None, ["label.flip=0,0.2"])
    'sweep-rdpo-label.flip'
    """
    over = [text.partition("=")[0] for text in axes or []]
    return "-".join([study] if study and not over else [study or "sweep", *recipes, *over]).replace("/", "-")


def compare(root: Path, name: str, rows: list[dict[str, Any]], asked: Study) -> None:
    """Write the comparison, and the study's tables and plots where there are axes; log them."""
    folder = experiments.kept(root, name)
    report.comparison(rows, folder, ("recipe", *asked.axes))
    if asked.axes:
        reading.write(rows, folder, axes=tuple(asked.axes), untrained=asked.untrained, skills=asked.skills)
    for page in sorted(folder.glob("*.md")):
        create_markdown_artifact(page.read_text(encoding="utf-8"), key=page.stem, description=name)
    run = tracking.log_sweep(root, name, rows, LABELS, tuple(asked.axes), folder)
    get_run_logger().info(f"comparison of {len(rows)} experiments: {folder} and MLflow run {run}")


def main(
    recipes: Annotated[str, typer.Option(help="Names of recipes, with commas between.")] = "",
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 1,
    settings: Annotated[list[str] | None, typer.Option("--set", help="stage.setting=value, repeatable.")] = None,
    name: Annotated[str | None, typer.Option(help="Folder of the comparison under experiments/.")] = None,
    retries: Annotated[int, typer.Option(help="Tries after a failure.")] = 0,
    study: Annotated[str | None, typer.Option(help="A file of flows/studies/, in place of recipes.")] = None,
    axes: Annotated[list[str] | None, typer.Option("--grid", help="stage.setting=value,value, repeatable.")] = None,
) -> None:
    """Run recipes, or a study, at every value of a grid with every seed, and compare them."""
    chosen = [recipe.strip() for recipe in recipes.split(",") if recipe.strip()]
    what: dict[str, Any] = {"recipes": chosen, "study": study, "axes": axes}
    cli.run(sweep, seeds=seeds, settings=settings, name=name, retries=retries, **what)
    folder = experiments.kept(Path.cwd(), name or title(chosen, study, axes))
    for page in sorted(folder.glob("*.md")):
        print(page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
