"""What a scene can be asked to show, in data and in plain English, and which compositions are held out.

A `Scene` is the wish: objects, and perhaps where the first one is. What it leaves open (a colour, a size) is drawn
with the picture. `Prompt.checks` holds it as plain data, so that a file can bring its own.
"""

import random
from functools import cache
from itertools import permutations, product
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from stages.errors import UserError
from stages.records import Record, fault

Shape = Literal["circle", "square", "triangle", "cross"]
Color = Literal["red", "green", "blue", "yellow", "purple", "black"]
Size = Literal["small", "large"]
Where = Literal["left of", "right of", "above", "below"]
Kind = Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
SHAPES, COLORS, SIZES, WHERE, KINDS = map(get_args, (Shape, Color, Size, Where, Kind))
COUNTS = ("a", "two", "three", "four")
HELD_OUT = 5  # one composition in so many is kept for the test


class Thing(Record):
    """One or several objects alike."""

    shape: Shape
    color: Color | None = None
    size: Size | None = None
    count: Annotated[int, Field(ge=1, le=len(COUNTS))] = 1


class Relation(Record):
    """Object `a` is left of, right of, above or below object `b`; both are places in the list of objects."""

    a: Annotated[int, Field(ge=0)]
    b: Annotated[int, Field(ge=0)]
    where: Where


class Scene(Record):
    """All that a picture shall show, and nothing else."""

    objects: Annotated[tuple[Thing, ...], Field(min_length=1)]
    relation: Relation | None = None

    @model_validator(mode="after")
    def _relates_what_is_there(self) -> "Scene":
        if self.relation:
            a, b = self.relation.a, self.relation.b
            if a == b or max(a, b) >= len(self.objects):
                raise PydanticCustomError("relation", "the relation is not between two of the objects")
        return self

    @property
    def checks(self) -> dict[str, Any]:
        """The same as plain data, for `Prompt.checks`."""
        return self.model_dump(mode="json", exclude_none=True)


def scene(checks: dict[str, Any], *, where: str = "checks") -> Scene:
    """Read `objects` and `relation` of a prompt's checks.

    Raises:
        UserError: they are not what a scene is made of.
    """
    try:
        return Scene.model_validate({name: checks[name] for name in Scene.model_fields if name in checks})
    except ValidationError as error:
        field, what = fault(error)
        raise UserError(
            f"{field}: {what}", where=where, mend="see stages/scenes/words.py for what a scene is"
        ) from None


def caption(spec: Scene) -> str:
    """Say it in English.

    >>> red, blue = Thing(shape="circle", color="red"), Thing(shape="square", color="blue", size="small", count=2)
    >>> caption(Scene(objects=(red, blue)))
    'a red circle and two small blue squares'
    >>> caption(Scene(objects=(red, blue), relation=Relation(a=1, b=0, where="above")))
    'two small blue squares above a red circle'
    """
    said = [_said(thing) for thing in spec.objects]
    if spec.relation:
        a, b = spec.relation.a, spec.relation.b
        others = [text for number, text in enumerate(said) if number not in (a, b)]
        said = [f"{said[a]} {spec.relation.where} {said[b]}", *others]
    return " and ".join(said)


def _said(thing: Thing) -> str:
    plural = "" if thing.count == 1 else "es" if thing.shape == "cross" else "s"
    return " ".join(filter(None, (COUNTS[thing.count - 1], thing.size, thing.color, thing.shape + plural)))


@cache
def everything(kind: Kind) -> tuple[Scene, ...]:
    """All scenes of a kind; the kinds are GenEval's tasks, two objects of a scene always differ in shape."""
    pairs, sizes = permutations(SHAPES, 2), (None, *SIZES)
    if kind == "single_object":
        return tuple(_one(shape, None, size) for shape, size in product(SHAPES, sizes))
    if kind == "colors":
        return tuple(_one(*looks) for looks in product(SHAPES, COLORS, sizes))
    if kind == "counting":
        all_looks = product(SHAPES, COLORS, sizes, range(2, len(COUNTS) + 1))
        return tuple(_one(*looks) for looks in all_looks if looks[2:] != ("large", len(COUNTS)))  # these do not fit
    if kind == "two_object":
        return tuple(Scene(objects=(Thing(shape=a), Thing(shape=b))) for a, b in pairs)
    both = [
        (Thing(shape=a, color=color), Thing(shape=b, color=other))
        for (a, b), color, other in product(pairs, COLORS, COLORS)
    ]
    if kind == "color_attr":
        return tuple(Scene(objects=(a, b)) for a, b in both if a.color != b.color)
    return tuple(Scene(objects=two, relation=Relation(a=0, b=1, where=where)) for two, where in product(both, WHERE))


def _one(shape: Shape, color: Color | None, size: Size | None, count: int = 1) -> Scene:
    return Scene(objects=(Thing(shape=shape, color=color, size=size, count=count),))


def composition(spec: Scene) -> tuple:
    """What two scenes share where they differ in size or wording alone: "a above b" is "b below a"."""
    things = [(thing.shape, thing.color or "", thing.count) for thing in spec.objects]
    if spec.relation is None:
        return (*sorted(things), ())
    a, b, where = things[spec.relation.a], things[spec.relation.b], spec.relation.where
    turned = {"right of": "left of", "below": "above"}.get(where)
    return (*sorted(things), (b, a, turned) if turned else (a, b, where))


@cache
def split(kind: Kind) -> tuple[tuple[Scene, ...], tuple[Scene, ...]]:
    """Scenes to train on and scenes held out: no composition is in both, every word is in the training captions.

    The same compositions are held out always, whatever the run's seed, so that runs can be compared. "a red circle"
    held out means that no red circle stands alone in training; it may stand beside a square.
    """
    known = sorted({composition(spec) for spec in everything(kind)})
    held = set(random.Random(f"held out/{kind}").sample(known, max(1, len(known) // HELD_OUT)))
    train = tuple(spec for spec in everything(kind) if composition(spec) not in held)
    return train, tuple(spec for spec in everything(kind) if composition(spec) in held)


def vocabulary() -> list[str]:
    """All words of all captions, in alphabetical order."""
    return sorted({word for kind in KINDS for spec in everything(kind) for word in caption(spec).split()})
