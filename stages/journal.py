"""The journal of a stage: metrics.jsonl per step in a local folder, which is the truth, and MLflow as its mirror.

    journal = Journal("optimize", scratch / "journal", config, {"data/label/pairs.jsonl": pairs})
    journal.rewind(step)                      # after a kill: forget what came after the checkpoint
    journal.log(step, {"loss": 0.69})         # all of a step is logged before its checkpoint is written
    journal.close()

The folder holds `metrics.jsonl`, `tables/`, `images/` and `run.json`, and nothing in the first three depends on the
clock. Only one process of a distributed training has a journal. `python -m stages.journal` delivers what an
unreachable MLflow missed.
"""

from __future__ import annotations

import json
import math
import resource
import sys
import time
import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from stages import lineage, mirror
from stages.errors import UserError
from stages.outbox import ROOT, Outbox, append, replace, trim, writing

SMALL = 100 * 2**20  # bytes up to which a checkpoint is uploaded whole
ACROSS, DOWN = 8, 16  # pictures of a table's grid; rows of any grid
LARGEST = 256  # pixels of a picture in a grid
CARD = 2**20  # bytes up to which a file of a larger checkpoint is uploaded beside the reference


class Journal:
    """What a stage measured. An existing folder is continued, in the same MLflow run."""

    def __init__(
        self,
        stage: str,
        folder: Path,
        config: dict[str, Any],
        inputs: dict[str, Path],
        *,
        root: Path = ROOT,
        apart: bool = False,
    ) -> None:
        """Open the journal, and deliver what earlier journals still owe MLflow.

        Args:
            stage: name of the stage; of a round, `optimize-r1`.
            folder: in the stage's scratch, beside its checkpoint.
            config: resolved settings of the stage.
            inputs: what the stage reads, by the path that dvc.yaml knows.
            root: where the outboxes of all journals lie.
            apart: deliver from a process of its own.
        """
        self.stage, self.folder, self.metrics = stage, folder, folder / "metrics.jsonl"
        self._begun = time.monotonic()
        self._models: dict[str, str] = {}  # logged models of this process, by content
        self._sent: dict[str, int] = {}  # the last step of each metric that went to MLflow before a rewind
        folder.mkdir(parents=True, exist_ok=True)
        known = json.loads((folder / "run.json").read_text("utf-8")) if (folder / "run.json").is_file() else {}
        self._outbox = Outbox(root / known.get("journal", f"{stage.replace('/', '-')}-{uuid.uuid4().hex[:12]}"))
        if not self._outbox.claim():
            raise UserError(f"another process runs the stage '{stage}'", where=str(folder), mend="wait for its end")
        trim(self.metrics)
        self._fresh = not self.metrics.exists()
        if self._outbox.events.is_file():
            self._outbox.add("status", _now(), status="RUNNING", tags={"prefloop.resumed": "true"})
        else:
            self._outbox.add("start", _now(), **self._facts(config, inputs))
        with self._outbox.turn():  # the courier of a stage that was killed may still be at it
            self._outbox.save(source=str(folder), status="RUNNING", run_id=self.run_id or known.get("run_id", ""))
        if not apart:
            mirror.deliver(root)
        self._sender = mirror.Courier(self._outbox, root) if apart else mirror.Sender(self._outbox)
        self._sender.send(now=True)

    def _facts(self, config: dict[str, Any], inputs: dict[str, Path]) -> dict[str, Any]:
        """What is known at the start, written down now: at delivery the work tree may be another."""
        tags = lineage.tags(self.stage) | {"prefloop.journal": self._outbox.folder.name}
        conventional = {"mlflow.source.name": f"stages.{self.stage}", "mlflow.source.type": "LOCAL"}
        if "prefloop.git_commit" in tags:
            conventional["mlflow.source.git.commit"] = tags["prefloop.git_commit"]
        return {
            "tags": tags | conventional,
            "params": lineage.flatten(config),
            "inputs": [
                {"name": name, "path": str(path), "digest": lineage.digest(path, name)} for name, path in inputs.items()
            ],
            "pipeline": lineage.pipeline_params(),
            "pipeline_name": f"{tags.get('prefloop.recipe', 'pipeline')}-{tags['prefloop.key'][:8]}",
        }

    @property
    def run_id(self) -> str:
        """MLflow's id of the stage's run; "" until MLflow was reached."""
        return self._outbox.state["run_id"]

    def rewind(self, step: int) -> None:
        """Forget the rows after `step`. MLflow keeps the points it has: the same steps are not sent to it twice."""
        rows = self._rows()
        logged = [(row["step"], key) for row in rows for key in row if key != "step"]
        for at, key in [*logged, *self._outbox.points()]:
            self._sent[key] = max(self._sent.get(key, at), at)
        if rows:
            replace(self.metrics, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))
        self._fresh = True

    def _rows(self) -> list[dict[str, Any]]:
        text = self.metrics.read_text("utf-8") if self.metrics.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def tail(self, rows: int) -> dict[str, float]:
        """Mean of each metric over the last rows; values that were not finite are left out."""
        found: dict[str, list[float]] = {}
        for row in self._rows()[-rows:]:
            for key in row.keys() - {"step"}:
                found.setdefault(key, []).extend([] if row[key] is None else [row[key]])
        return {key: sum(values) / len(values) for key, values in sorted(found.items()) if values}

    def summary(self, values: dict[str, Any]) -> None:
        """Send the stage's result to MLflow: to its own run, and to the pipeline's under the stage's name.

        It is no row of metrics.jsonl, which holds steps only.
        """
        self._outbox.add("summary", _now(), stage=self.stage, values={k: _plain(v) for k, v in sorted(values.items())})
        self._sender.send()

    def tag(self, tags: dict[str, str]) -> None:
        """Mark the stage's run in MLflow, in place of earlier tags of these names."""
        self._outbox.add("status", _now(), status="RUNNING", tags=tags)
        self._sender.send()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append one row: the step, then the values by name. NaN and infinity are null there, and themselves in MLflow.

        The first row after a kill, where nobody has rewound, rewinds to before its step.
        """
        if not self._fresh:
            self.rewind(step - 1)
        plain = {key: _plain(values[key]) for key in sorted(values)}
        unsent = {key: value for key, value in plain.items() if step > self._sent.get(key, -1)}
        if unsent:
            self._outbox.add("metrics", _now(), step=step, values=unsent)
        append(self.metrics, {"step": step} | {k: v if math.isfinite(v) else None for k, v in plain.items()})
        self._sender.send()

    def table(self, name: str, rows: list[dict[str, Any]]) -> Path:
        """Write rows as `tables/<name>.json`, in place of an earlier table of that name, and show it in MLflow.

        Columns named `image`, or `<side>/image`, are no text: they go to `images` as a grid, in the order of the rows.
        Latents are left out.
        """
        columns = list(dict.fromkeys(key for row in rows for key in row))
        for column in [c for c in columns if _leaf(c) == "image"]:
            pictures = [row[column] for row in rows if row.get(column)]
            self.images(f"{name}/{column}", 0, [pictures[i : i + ACROSS] for i in range(0, len(pictures), ACROSS)])
        columns = [c for c in columns if _leaf(c) not in ("image", "latents")]
        content = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
        path = self.folder / "tables" / f"{name}.json"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
        self._file(path, path.name, shown="table")
        return path

    def image(self, name: str, image: Any, step: int = 0) -> Path:
        """Write a PIL image, or copy a file of one, to `images/<name>-<step>.png`."""
        from PIL import Image

        path = self.folder / "images" / f"{name.replace('/', '-')}-{step}.png"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(image) if isinstance(image, str | Path) else nullcontext(image) as picture:
                picture.save(path)
        kept = self._outbox.keep({"image.png": path})
        self._outbox.add("image", _now(), key=name, step=step, kept=kept)
        self._sender.send()
        return path

    def images(self, name: str, step: int, rows: list[list[str]]) -> Path | None:
        """Show a grid of pictures (base64 of their files), as training goes; "" leaves a gap. Nothing of no picture."""
        from stages import images

        shown = next((picture for row in rows[:DOWN] for picture in row if picture), "")
        if not shown:
            return None
        side = min(LARGEST, max(64, *images.open_picture(shown).size))
        return self.image(name, images.grid(rows[:DOWN], side=side), step)

    def artifact(self, path: Path, under: str = "") -> None:
        """Upload a file or a folder, as it is now, into the folder `under` of the run."""
        self._file(path, path.name, under=under)

    def _file(self, path: Path, name: str, under: str = "", shown: str = "") -> None:
        below = {f"{name}/{f.relative_to(path).as_posix()}": f for f in lineage.files(path)} if path.is_dir() else {}
        kept = self._outbox.keep(below or {name: path})
        self._outbox.add("file", _now(), kept=kept, path=f"{under}/{name}".lstrip("/"), under=under, shown=shown)
        self._sender.send()

    def checkpoint(self, path: Path, step: int) -> None:
        """Log a policy as a model: a small one with its files, a large one by path and hash; -1 says it is finished.

        Stages log what they publish and nothing before it: scratch checkpoints are for resuming, not for reading.
        """
        self._model(path, lineage.digest(path), f"step-{step}" if step >= 0 else "final", max(step, 0))

    def _model(self, path: Path, digest: str, name: str, step: int, *, known: bool = False) -> None:
        small = lineage.size(path) <= SMALL
        tags = {"prefloop.path": str(path.resolve()), "prefloop.md5": digest, "prefloop.weights": _weights(path)}
        names = {(f.relative_to(path).as_posix() if path.is_dir() else f.name): f for f in lineage.files(path)}
        reference = self.folder / "reference.json"
        replace(reference, json.dumps(tags | {"bytes": {n: f.stat().st_size for n, f in names.items()}}, indent=1))
        uploaded = {n: f for n, f in names.items() if small or f.stat().st_size <= CARD} | {"reference.json": reference}
        kept = self._outbox.keep(uploaded)
        kind = "checkpoint" if small else "reference"
        self._models[digest] = f"{self.stage}-{name}".replace("/", "-")
        facts = {"name": self._models[digest], "step": step, "type": kind, "tags": tags, "known": known}
        self._outbox.add("checkpoint", _now(), **facts, kept=kept)
        self._sender.send()

    def register(self, name: str, path: Path, metrics: dict[str, float], gate_passed: bool) -> None:
        """Make a finished model a version of the registered model `name`.

        It is a version of the model that its own stage logged, where MLflow has one with the same weights; else it is
        logged now. The alias `champion` moves only if the gate was passed; `latest` is MLflow's own name of the newest
        version.
        Give the path where the model stays, not scratch: the version remembers it.
        """
        digest = lineage.digest(path)
        if digest not in self._models:
            self._model(path, digest, digest[:12], 0, known=True)
        tags = {"prefloop.path": str(path.resolve()), "prefloop.md5": digest} | lineage.tags(self.stage)
        plain = {key: _plain(value) for key, value in metrics.items()}
        facts = {
            "name": name,
            "model": self._models[digest],
            "metrics": plain,
            "gate_passed": bool(gate_passed),
            "tags": tags,
            "weights": _weights(path),
        }
        self._outbox.add("version", _now(), **facts)
        self._sender.send()

    def close(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED. What MLflow still misses waits for the next journal."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        spent = {"system/peak_memory_gb": peak / 2**30, "system/wall_seconds": time.monotonic() - self._begun}
        self._outbox.add("metrics", _now(), step=0, values=spent)
        self._outbox.add("status", _now(), status=status)
        with self._outbox.turn():
            self._outbox.save(status=status)
        self._sender.end()
        self._outbox.reload()
        self._outbox.release()

    def __enter__(self) -> Journal:
        """A journal is closed at the end of its block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """An exception ends the run as FAILED, the user's own interrupt as KILLED."""
        interrupted = kind is not None and not issubclass(kind, Exception)
        self.close("FINISHED" if kind is None else "KILLED" if interrupted else "FAILED")


def _plain(value: Any) -> float:
    """A Python number of a number or of a tensor of one element."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else float(value)


def _weights(path: Path) -> str:
    """The md5 of a model's weights alone: what a stage adds to the folder when it publishes does not change it."""
    if not path.is_dir():
        return lineage.digest(path)
    held = [f for f in lineage.files(path) if f.suffix == ".safetensors"] or lineage.files(path)
    listed = [(f.relative_to(path).as_posix(), lineage.digest(f)) for f in held]
    return lineage.md5(json.dumps(listed).encode())


def _leaf(column: str) -> str:
    return column.rpartition("/")[2]


def _now() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    waiting = mirror.deliver()
    print(f"{waiting} journals still wait for MLflow at {mirror.uri()}")
    raise SystemExit(bool(waiting))
