"""An experiment: one setting of params.yaml run in a workspace of its own, then saved as a DVC experiment.

The workspace is a git worktree under `.scratch/workspaces/`, with the uncommitted edits of tracked files and the
repository's DVC cache. `dvc exp run --temp` would do the same in one opaque step; here each stage is a task of its own,
experiments may run side by side (one `dvc repro` per workspace), and a killed one goes on where it was, its scratch
checkpoints included. A finished one is seen by `dvc exp show` and brought back by `dvc exp apply NAME`; its metrics and
its report are kept under `experiments/NAME/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flows import check, dvc, recipes
from stages.errors import UserError

METRICS = Path("metrics/evaluate.json")
REPORT = Path("data/evaluate/report.html")
JOURNALS = Path(".scratch/journal")  # where stages/outbox.py keeps them
NOBODY = {"NAME": "prefloop", "EMAIL": "prefloop@localhost"}  # who saves where git knows no user, as on a worker


@dataclass(frozen=True)
class Experiment:
    """Where it runs, what it is called, what it runs with."""

    root: Path  # the repository
    name: str
    params: recipes.Node
    commit: str  # what was checked out when it was planned
    edits: str  # a commit with the edits of tracked files at that time; empty where there were none

    @property
    def workspace(self) -> Path:
        """The worktree in which it runs."""
        return self.root / ".scratch" / "workspaces" / self.name

    @property
    def results(self) -> Path:
        """The folder that keeps its metrics and report."""
        return kept(self.root, self.name)


def kept(root: Path, name: str) -> Path:
    """A folder for results that git ignores."""
    folder = root / "experiments" / name
    folder.mkdir(parents=True, exist_ok=True)
    (root / "experiments" / ".gitignore").write_text("*\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Code:
    """The repository at a moment."""

    commit: str  # what is checked out
    edits: str  # a commit with the edits of tracked files; empty where there are none
    digest: str  # changes with any tracked file but params.yaml and dvc.lock


def code(root: Path) -> Code:
    """What is there now.

    Raises:
        UserError: `root` is no repository.
    """
    _git(root, "status", "--porcelain")  # looks at files of another date, as after a copy; stash fails over them
    commit, edits = _git(root, "rev-parse", "HEAD"), _git(root, "stash", "create")
    listing = _git(root, "ls-tree", "-r", edits or commit).splitlines()
    kept = "\n".join(line for line in listing if line.split("\t")[-1] not in ("params.yaml", "dvc.lock"))
    return Code(commit, edits, hashlib.sha256(kept.encode()).hexdigest())


def plan(
    root: Path,
    recipe: str | None,
    seed: int | None,
    settings: list[str],
    *,
    overlay: recipes.Node | None = None,
    prefix: str = "",
    at: Code | None = None,
) -> Experiment:
    """Name an experiment after its recipe and seed, and a digest of all params and tracked code.

    The same setting of the same code therefore has the same name, and is found again however it was started. It runs
    the code of this moment, whatever is edited or committed before its turn comes.

    Args:
        root: the repository.
        recipe: laid over params.yaml.
        seed: `run.seed`.
        settings: `stage.setting=value`, laid over all else.
        overlay: laid over the recipe.
        prefix: of the name.
        at: the code that it runs with, which several may share; that of now if not given.

    Raises:
        UserError: an unknown recipe, a setting that a stage does not take, or `root` is no repository.
    """
    params = committed = recipes.read(root / "params.yaml")
    if recipe:
        params = recipes.apply(params, recipes.load(recipe))
    if seed is not None:
        params = recipes.apply(params, {"run": {"seed": seed}})
    params = recipes.apply(params, overlay or {})
    params = recipes.apply(params, recipes.settings(settings, params))
    check.nodes(params, committed)
    check.params(root, params)
    at = at or code(root)
    digest = hashlib.sha256((json.dumps(params, sort_keys=True) + at.digest).encode())
    label = (recipe or "params").replace("/", "-")
    name = f"{prefix}{label}-s{params.get('run', {}).get('seed', 0)}-{digest.hexdigest()[:7]}"
    return Experiment(root, name, params, at.commit, at.edits)


def finished(experiment: Experiment) -> dict[str, float] | None:
    """Its metrics, if it was saved on the present commit before."""
    metrics = experiment.results / "metrics.json"
    if metrics.exists() and experiment.name in dvc.experiments(experiment.root):
        return json.loads(metrics.read_text(encoding="utf-8"))
    return None


def enter(experiment: Experiment) -> Path:
    """Make the workspace, or take up the one that a killed run left, and write its params."""
    root, folder = experiment.root, experiment.workspace
    ready = folder / ".dvc" / "config.local"  # written last
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _git(root, "worktree", "prune")
        _git(root, "worktree", "add", "--quiet", "--detach", str(folder), experiment.commit)
        if experiment.edits:
            _git(folder, "stash", "apply", "--quiet", experiment.edits)
        private = root / ".dvc" / "config.local"  # a remote's address and keys
        shutil.copy(private, ready) if private.exists() else ready.touch()
    dvc.share_cache(folder, dvc.cache(root))
    recipes.write(folder / "params.yaml", experiment.params)
    return folder


def leave(experiment: Experiment) -> dict[str, float]:
    """Save the finished experiment, keep its metrics and report, and remove the workspace."""
    metrics = measured(experiment.workspace)
    dvc.save(experiment.workspace, experiment.name, _author(experiment.root))
    report = experiment.workspace / REPORT
    if report.exists():
        shutil.copy(report, experiment.results / REPORT.name)
    (experiment.results / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")  # last
    _rescue_journals(experiment)
    _git(experiment.root, "worktree", "remove", "--force", str(experiment.workspace))
    return metrics


def measured(workspace: Path) -> dict[str, float]:
    """The metrics that the evaluation wrote; one without a value is left out.

    Raises:
        UserError: it wrote none.
    """
    if not (workspace / METRICS).exists():
        raise UserError("no metrics", where=str(METRICS), mend="let dvc.yaml end in a stage that writes them")
    metrics = json.loads((workspace / METRICS).read_text(encoding="utf-8"))
    return {key: value for key, value in metrics.items() if value is not None}


def _rescue_journals(experiment: Experiment) -> None:
    """Move what an unreachable MLflow still misses to the repository, from where a later run delivers it."""
    for box in (experiment.workspace / JOURNALS).glob("*"):
        (experiment.root / JOURNALS).mkdir(parents=True, exist_ok=True)
        shutil.move(box, experiment.root / JOURNALS / box.name)


def _author(root: Path) -> dict[str, str]:
    """The user whom git needs for a commit, as environment variables; empty where git knows one."""
    known = subprocess.run(["git", "config", "user.email"], cwd=root, capture_output=True)
    if known.returncode == 0 or "GIT_COMMITTER_EMAIL" in os.environ:
        return {}
    return {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in NOBODY.items()}


def _git(root: Path, *arguments: str) -> str:
    env = {**os.environ, **_author(root)}
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, env=env)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["failed"]
        raise UserError(
            f"git {' '.join(arguments[:2])}: {said[-1]}",
            where=str(root),
            mend="an experiment needs a git repository with a commit: commit first",
        )
    return done.stdout.strip()
