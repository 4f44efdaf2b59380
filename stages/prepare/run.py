"""Prepare: the base model, the sentence encoder, and prompts in a training and a held-out part."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages import directions, files, records
from stages.config import Config, Run
from stages.directions import Directions
from stages.entry import Job, Stage
from stages.errors import UserError
from stages.prepare import attacks, models, prompts, worlds
from stages.prepare.attacks import Attacks
from stages.prepare.readers import read_prompts
from stages.records import Message, Prompt, Single


class Prepare(Config):
    """The node `prepare`."""

    model: str = "smollm2-135m-instruct"  # inside a wheel; or a hub id; or a local folder
    encoder: str = "all-minilm-l6-v2"
    prompts: str = "builtin"  # or a world: digits, scenes, personas, vaults (worlds.py); or a file (readers.py)
    shape: str = "auto"
    columns: dict[str, str] = Field(default_factory=dict)  # expected column -> the file's own name for it
    ties: Literal["drop", "keep"] = "drop"  # of pairs of images that people saw as equal
    max_chars: Annotated[int, Field(ge=1)] = 8000  # longer rows are refused
    train: Annotated[int, Field(ge=1)] = 192
    test: Annotated[int, Field(ge=1)] = 64
    directions: Directions | None = None  # tells every prompt how much is wanted of each of two rewards
    attacks: Attacks | None = None  # puts requests in attack styles and holds whole styles and topics out


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    prepare: Prepare = Prepare()


def run(job: Job[Settings]) -> dict[str, float]:
    """Write train.jsonl, test.jsonl, demonstrations.jsonl, quarantine.jsonl, model/ and encoder/."""
    config = job.config.prepare
    train, test, refused = read(config, job.config.run.seed, job.out / "quarantine.jsonl")
    if config.directions is not None:
        train = directions.training(train, config.directions, job.config.run.seed)
        test = directions.held_out(test, config.directions)
    records.write(job.out / "train.jsonl", train)
    records.write(job.out / "test.jsonl", test)
    records.write(job.out / "demonstrations.jsonl", demonstrations(train))
    for name, folder in ((config.model, "model"), (config.encoder, "encoder")):
        if not any((job.out / folder / index).exists() for index in ("config.json", "model_index.json")):
            models.fetch(name, job.scratch / folder, where=f"params.yaml prepare.{folder}")
            files.publish(job.scratch / folder, job.out / folder)
    return {"prompts/train": len(train), "prompts/test": len(test), "prompts/refused": refused}


def read(config: Prepare, seed: int, quarantine: Path) -> tuple[list[Prompt], list[Prompt], int]:
    """Training prompts, held-out prompts, and how many rows were refused.

    Raises:
        UserError: the file has too few usable prompts.
    """
    if config.prompts == "builtin":
        quarantine.write_text("")
        return prompts.builtin("train", config.train, seed), prompts.builtin("test", config.test, seed), 0
    if config.prompts in worlds.WORLDS:
        quarantine.write_text("")
        return (*worlds.world(config.prompts, config.train, config.test, seed, config.attacks), 0)
    found = read_prompts(
        Path(config.prompts),
        shape=config.shape,
        columns=config.columns,
        quarantine=quarantine,
        max_chars=config.max_chars,
        ties=config.ties,
    )
    if found.refused:
        reasons = ", ".join(f"{count} {reason}" for reason, count in found.by_reason.most_common())
        print(f"{config.prompts}: {found.refused} rows refused ({reasons}); see data/prepare/quarantine.jsonl")
    if config.attacks is None:
        return (*split(found.prompts, config, seed), found.refused)
    train, test = attacks.build(found.prompts, config.attacks, config.train, config.test, seed)
    return train, test, found.refused


def split(found: list[Prompt], config: Prepare, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Shuffle, and hold out whole prompts: two rows that ask the same fall on the same side.

    Raises:
        UserError: too few prompts.
    """
    asked: dict[tuple[Message, ...], list[Prompt]] = {}
    for prompt in found:
        asked.setdefault(prompt.messages, []).append(prompt)
    groups = list(asked.values())
    random.Random(seed).shuffle(groups)
    parts: tuple[list[Prompt], list[Prompt]] = ([], [])
    for group in groups:
        side, room = (1, config.test) if len(parts[1]) < config.test else (0, config.train)
        parts[side].extend(group[: room - len(parts[side])])
    test, train = parts[1], parts[0]
    if len(train) < config.train or len(test) < config.test:
        what = f"{len(found)} usable prompts, {config.train + config.test} wanted"
        what += f" ({config.train} train, {config.test} test)"
        raise UserError(what, where=config.prompts, mend="lower prepare.train or prepare.test")
    return train, test


def demonstrations(prompts: list[Prompt]) -> list[Single]:
    """The best completion that came with each prompt, of those that came with one."""
    return [
        Single(id=p.id, messages=p.messages, completion=max(p.given, key=lambda c: c.score or 0.0), label=True)
        for p in prompts
        if p.given
    ]


STAGE = Stage(
    name="prepare",
    schema=Settings,
    run=run,
    inputs=lambda config: {},
    output=Path("data/prepare"),
)
