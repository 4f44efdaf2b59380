"""GenEval's folders of pictures: written exactly, and scored for scenes without a trained detector.

    FOLDER/00000/metadata.jsonl    one object: tag, include, exclude, prompt
    FOLDER/00000/samples/0000.png
    FOLDER/00000/grid.png          all samples, for the eye

    python -m stages.evaluate.geneval FOLDER                            score what lies there
    python -m stages.evaluate.geneval FOLDER --policy data/optimize     let a policy draw it first

The prompts that a policy draws may be GenEval's own too (`prepare.prompts: evaluation_metadata.jsonl`). Their objects
are no scenes: the folder is written, and GenEval's detector scores it.

GenEval's rule: every entry of `include` is there at least `count` times, in its `color`, at its `position` (relation,
index of an earlier entry); no entry of `exclude` is there `count` times. Scenes want exactly what they name, so
`exclude` lists every shape at one more than is wanted, and both rules agree.

Source: Ghosh et al., GenEval, NeurIPS 2023, arXiv 2310.11513.
"""

import base64
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from stages import config, entry, images, records, rollout
from stages.errors import UserError
from stages.policies import family
from stages.records import Candidate, Prompt
from stages.scenes.look import verify
from stages.scenes.words import SHAPES, scene

ROW = 4  # pictures in a row of grid.png
TEST = Path("data/prepare/test.jsonl")


class Settings(config.Config):
    """What the command reads of params.yaml, where a policy draws."""

    run: config.Run = config.Run()


def metadata(prompt: Prompt) -> dict[str, Any]:
    """GenEval's line for a prompt whose checks are a scene, or for one of its own as it came.

    Of a scene the object that stands somewhere comes last, since a position names an earlier entry. `size` is ours:
    GenEval's own script reads past it.

    Raises:
        UserError: the checks are neither.
    """
    if "include" in prompt.checks:
        kept = [(name, prompt.checks[name]) for name in ("include", "exclude") if name in prompt.checks]
        return {"tag": prompt.kind, **dict(kept), "prompt": prompt.messages[-1].content}
    spec = scene(prompt.checks, where=f"prompt {prompt.id} checks")
    order = list(range(len(spec.objects)))
    if spec.relation:
        order.append(order.pop(spec.relation.a))
    include = []
    for number in order:
        thing = spec.objects[number]
        entry: dict[str, Any] = {"class": thing.shape, "count": thing.count, "color": thing.color, "size": thing.size}
        if spec.relation and number == spec.relation.a:
            entry["position"] = [spec.relation.where, order.index(spec.relation.b)]
        include.append({name: value for name, value in entry.items() if value is not None})
    wanted = {shape: sum(thing.count for thing in spec.objects if thing.shape == shape) for shape in SHAPES}
    return {
        "tag": prompt.kind,
        "include": include,
        "exclude": [{"class": shape, "count": count + 1} for shape, count in wanted.items()],
        "prompt": prompt.messages[-1].content,
    }


def checks(line: dict[str, Any], *, where: str = "metadata.jsonl") -> dict[str, Any]:
    """The checks of a line of GenEval's metadata, the object that stands somewhere first, as captions say it.

    `exclude` is not read: a scene shows nothing that it does not name.

    Raises:
        UserError: an entry is not an object of a scene.
    """
    try:
        include = [dict(entry) for entry in line["include"]]
        positions = {n: entry.pop("position") for n, entry in enumerate(include) if "position" in entry}
        order = [*positions, *(n for n in range(len(include)) if n not in positions)]
        things = [{"shape": include[n].pop("class"), **include[n]} for n in order]
        relations = [{"a": 0, "b": order.index(n), "where": said} for said, n in positions.values()]
    except (LookupError, TypeError, ValueError) as error:
        what = f"not GenEval's metadata: {type(error).__name__} {error}"
        raise UserError(
            what, where=where, mend="each of include wants class, count, perhaps [relation, index]"
        ) from None
    if len(relations) > 1:
        raise UserError(f"{len(relations)} positions", where=where, mend="give one: a scene has one relation")
    return scene({"objects": things, **({"relation": relations[0]} if relations else {})}, where=where).checks


def write(folder: Path, prompts: Sequence[Prompt], candidates: Iterable[Candidate]) -> None:
    """Lay out candidates as GenEval's scripts read them: one numbered folder a prompt, in the order of the prompts.

    Raises:
        UserError: a prompt whose checks are not a scene, or one without a picture.
    """
    drawn: dict[str, list[str]] = defaultdict(list)
    for candidate in candidates:
        if candidate.image:
            drawn[candidate.prompt].append(candidate.image)
    for number, prompt in enumerate(prompts):
        shown = drawn[prompt.id]
        if not shown:
            raise UserError("no picture", where=f"prompt {prompt.id}", mend="sample at least one for each prompt")
        home = folder / f"{number:05d}"
        (home / "samples").mkdir(parents=True, exist_ok=True)
        (home / "metadata.jsonl").write_text(json.dumps(metadata(prompt)), encoding="utf-8")
        for k, image in enumerate(shown):
            images.open_picture(image).save(home / "samples" / f"{k:04d}.png")
        rows = [shown[start : start + ROW] for start in range(0, len(shown), ROW)]
        images.grid(rows, side=images.open_picture(shown[0]).height, gap=2).save(home / "grid.png")


def score(folder: Path) -> list[dict[str, Any]]:
    """One row of results.jsonl for each picture of a folder of scenes, in GenEval's fields and in the folders' order.

    Raises:
        UserError: no such folder, a folder without metadata or pictures, or metadata of something else than scenes.
    """
    homes = sorted(home for home in folder.glob("*") if home.is_dir() and home.name.isdigit())
    if not homes:
        raise UserError("no numbered folders", where=str(folder), mend="give the folder that holds 00000/")
    return [row for home in homes for row in _score_prompt(home)]


def _score_prompt(home: Path) -> list[dict[str, Any]]:
    file = home / "metadata.jsonl"
    try:
        line = json.loads(file.read_text(encoding="utf-8"))
        tag, said = line["tag"], line["prompt"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        what = f"not GenEval's metadata: {type(error).__name__} {error}"
        raise UserError(what, where=str(file), mend="one JSON object with tag, include and prompt") from None
    wanted = checks(line, where=str(file))
    pictures = sorted(file for file in (home / "samples").glob("*.png") if file.stem.isdigit())
    if not pictures:
        raise UserError("no pictures", where=str(home / "samples"), mend="draw at least one: 0000.png")
    rows = []
    for picture in pictures:
        verdict = verify(images.decode(base64.b64encode(picture.read_bytes()).decode("ascii")), wanted)
        boxes: dict[str, list[list[float]]] = defaultdict(list)
        for one in verdict["found"]:
            boxes[one.shape or "unknown"].append([*one.box, 1.0])  # GenEval's boxes end in a confidence
        rows.append(
            {
                "filename": str(picture),
                "tag": tag,
                "prompt": said,
                "correct": verdict["correct"],
                "reason": verdict["reason"],
                "metadata": json.dumps(line),
                "details": json.dumps(boxes),
            }
        )
    return rows


def save(rows: Iterable[dict[str, Any]], file: Path) -> None:
    """Write results.jsonl."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """GenEval's summary: the share of correct pictures by task, and `overall`, the mean over tasks.

    `images` is the share of all pictures that are correct, `prompts` that of prompts with at least one correct picture.

    >>> results = (("a", 1, True), ("a", 1, False), ("b", 2, True))
    >>> rows = [{"tag": tag, "metadata": line, "correct": correct} for tag, line, correct in results]
    >>> summary(rows)
    {'a': 0.5, 'b': 1.0, 'overall': 0.75, 'images': 0.6666666666666666, 'prompts': 1.0}
    """
    tasks, prompts = defaultdict(list), defaultdict(list)
    for row in rows:
        tasks[row["tag"]].append(row["correct"])
        prompts[row["metadata"]].append(row["correct"])
    by_task = {task: sum(correct) / len(correct) for task, correct in tasks.items()}
    return by_task | {
        "overall": sum(by_task.values()) / len(by_task),
        "images": sum(row["correct"] for row in rows) / len(rows),
        "prompts": sum(map(any, prompts.values())) / len(prompts),
    }


def draw(folder: Path, policy: Path, prompts: Path, samples: int) -> bool:
    """Let a policy draw samples of each prompt and lay them out; `run` of params.yaml says how it draws.

    Returns:
        Whether all prompts are scenes, which `score` can see.

    Raises:
        UserError: no such policy or prompts, or prompts that say nothing of what is to be seen.
    """
    run = config.load(Settings).run
    asked = records.read(prompts, Prompt)
    for prompt in asked:
        metadata(prompt)  # refused before the sampling
    drawer = family.load(run, policy)
    sample = partial(drawer.sample, k=samples, seed=run.seed)
    label = f"draw from {policy}"
    with TemporaryDirectory() as scratch:
        drawn = rollout.sample(sample, asked, samples, Path(scratch), label=label, chunk=drawer.chunk)
        write(folder, asked, drawn)
    return not any("include" in prompt.checks for prompt in asked)


def main(
    folder: Annotated[Path, typer.Argument(help="Holds 00000/, 00001/, ...; results.jsonl is written to it.")],
    policy: Annotated[Path | None, typer.Option(help="Folder of a policy that draws the pictures first.")] = None,
    prompts: Annotated[Path, typer.Option(help="What it is asked for.")] = TEST,
    samples: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
) -> None:
    """Score a folder of pictures of scenes, after a policy has drawn them where one is named."""
    entry.quiet_libraries()
    try:
        if policy is not None and not draw(folder, policy, prompts, samples):
            print(f"{folder} holds the pictures; their objects are no scenes: score it with GenEval's own detector")
            return
        rows = score(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    save(rows, folder / "results.jsonl")
    for name, share in summary(rows).items():
        print(f"{name}\t{share:.6g}")


if __name__ == "__main__":
    typer.run(main)
