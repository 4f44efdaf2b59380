"""The embedded worlds: handwritten digits, drawn scenes, made-up people, guarded vaults. None needs a download."""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch

from stages import images
from stages.errors import UserError, nearest
from stages.personas import world as personas
from stages.personas.world import Split
from stages.prepare import attacks
from stages.prepare.attacks import Attacks
from stages.records import Completion, Message, Prompt
from stages.scenes.draw import render
from stages.scenes.words import KINDS, caption, split

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORLDS = ("digits", "scenes", "personas", "vaults")
REAL = 1500  # of the 1797 images of digits; the others are held out

Row = TypeVar("Row")


def world(name: str, train: int, test: int, seed: int, how: Attacks | None = None) -> tuple[list[Prompt], list[Prompt]]:
    """Training prompts, pictures each with its own in `given`, and held-out prompts without one.

    The first n of either list hold all kinds (all ten digits) as evenly as can be, whatever n is.

    Args:
        name: `digits`: scikit-learn's, 8 x 8 grey, `answer` is the digit; or `scenes`: 32 x 32 in colour, `checks`
            says what they show and `kind` is GenEval's task. Held-out scenes are of compositions that no training
            scene is of. Or `personas`: questions to made-up people, `checks` holds what is true of them. Or `vaults`:
            a code word that is asked for in attack styles, see attacks.py.
        train: how many; of digits at most 1500.
        test: how many; of digits at most 297. Scenes repeat captions once all were used.
        seed: the same seed gives the same lists.
        how: attacks are made of vaults.

    Raises:
        UserError: no such world, or more digits than exist.
    """
    if name not in WORLDS:
        where = "params.yaml prepare.prompts"
        raise UserError(f"no world is called '{name}'", where=where, mend=nearest(name, [*WORLDS]))
    if name == "vaults":
        own, held_out = attacks.build(attacks.vaults(), how or Attacks(), train, test, seed)
        return own, held_out
    make = {"digits": _digits, "scenes": _scenes, "personas": personas.prompts}[name]
    return make("train", train, seed), make("test", test, seed)


def _digits(part: Split, count: int, seed: int) -> list[Prompt]:
    from sklearn.datasets import load_digits  # late: half a second

    data = load_digits()
    rows = range(REAL) if part == "train" else range(REAL, len(data.target))
    if count > len(rows):
        what = f"{count} digits asked for, {len(rows)} exist"
        raise UserError(what, where=f"params.yaml prepare.{part}", mend="ask for fewer")
    rng = random.Random(f"digits/{part}/{seed}")
    mixed = rng.sample(rows, len(rows))
    made = []
    for row in islice(_even([iter([n for n in mixed if data.target[n] == digit]) for digit in range(10)], rng), count):
        pixels = torch.from_numpy(data.images[row]).float()[None] / 8 - 1
        given = (Completion(image=images.encode(pixels)),) if part == "train" else ()
        digit = int(data.target[row])
        asked = Message(role="user", content=f"a handwritten {DIGITS[digit]}")
        made.append(Prompt(id=f"digit-{row:04d}", messages=(asked,), kind="digit", answer=str(digit), given=given))
    return made


def _scenes(part: Split, count: int, seed: int) -> list[Prompt]:
    rng = random.Random(f"scenes/{part}/{seed}")
    of_kinds = [_forever([(kind, spec) for spec in split(kind)[part == "test"]], rng) for kind in KINDS]
    made = []
    for number, (kind, spec) in enumerate(islice(_even(of_kinds, rng), count)):
        given = (Completion(image=images.encode(render(spec, rng.getrandbits(32)))),) if part == "train" else ()
        asked = Message(role="user", content=caption(spec))
        name = f"scene-{part}-{number:05d}"
        made.append(Prompt(id=name, messages=(asked,), kind=kind, checks=spec.checks, given=given))
    return made


def _forever(rows: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """All rows in a random order, again and again."""
    while True:
        yield from rng.sample(rows, len(rows))


def _even(kinds: list[Iterator[Row]], rng: random.Random) -> Iterator[Row]:
    """One row of each kind in a random order, again and again until all are used up."""
    while kinds:
        for rows in rng.sample(kinds, len(kinds)):
            try:
                row = next(rows)
            except StopIteration:
                kinds.remove(rows)
            else:
                yield row
