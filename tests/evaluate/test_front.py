"""The front of two rewards in a run: its columns, its area, its place in the report."""

import csv

import pytest

from stages import declared, directions
from stages.directions import Directions
from stages.evaluate import fronts, measures, report
from stages.evaluate.results import Estimate, Results
from stages.panel import Panel
from tests.label.world import candidate, prompt

REWARDS = ("relevance", "length")
DECLARED = declared.of(Panel(rewards={name: {} for name in REWARDS}))
WANTED = Directions(first="relevance", second="length", test=(-45.0, 0.0, 45.0))
GAINS = {-45.0: (0.8, 0.2), 0.0: (0.6, 0.4), 45.0: (0.5, 0.3)}  # the last is worse than the one before


def columns(*, stated: bool = True) -> dict[str, list[float]]:
    asked = [prompt(name, f"Question {name}?") for name in "ab"]
    test = directions.held_out(asked, WANTED) if stated else asked
    final, base = [], []
    for ask in test:
        first, second = GAINS[fronts.angle(ask, REWARDS) or 0.0]
        move = 0.1 if ask.id.startswith("a") else -0.1
        final.append(candidate("f", of=ask.id, scores={"relevance": first + move, "length": second}))
        base.append(candidate("b", of=ask.id, scores={"relevance": 0.5, "length": 0.1}))
    return fronts.columns(test, final, base, REWARDS, DECLARED)


def test_points_are_the_means_of_each_direction() -> None:
    found = fronts.points(columns(), name="final")
    assert [p.name for p in found] == ["final -45", "final 0", "final 45"]
    for point, wanted in zip(found, GAINS.values(), strict=True):
        assert point.values == pytest.approx(wanted)


def test_worked_area() -> None:
    """0.8 * 0.2, and 0.6 * 0.2 above it; the third point lies inside. Two of three points are on the front."""
    told = measures.measure({"hypervolume": {}}, columns())
    assert told["hypervolume"] == pytest.approx(0.8 * 0.2 + 0.6 * 0.2)
    assert told["hypervolume/base"] == pytest.approx(0.5 * 0.1)
    assert told["hypervolume/difference"] == pytest.approx(0.23)
    assert told["hypervolume/front"] == pytest.approx(2 / 3)


def test_without_directions_it_is_one_rectangle() -> None:
    found = columns(stated=False)
    assert [p.angle for p in fronts.points(found)] == [None]
    assert measures.measure({"hypervolume": {}}, found)["hypervolume"] == pytest.approx(0.6 * 0.4)


def test_an_answer_that_one_of_the_two_is_silent_on_counts_nowhere() -> None:
    final = [
        candidate("f", of="a", scores={"relevance": 0.5}),
        candidate("g", of="b", scores=dict.fromkeys(REWARDS, 0.5)),
    ]
    base = [candidate("b", of=c.prompt, scores=dict.fromkeys(REWARDS, 0.1)) for c in final]
    told = fronts.columns([prompt("a"), prompt("b")], final, base, REWARDS, DECLARED)
    assert told == {"direction": [0.0], "first": [0.5], "second": [0.5], "base_first": [0.1], "base_second": [0.1]}


def test_where_nobody_asks_for_it_nothing_is_measured() -> None:
    assert measures.measure({"hypervolume": {}}, {"prob": [0.5]}) == {}


def test_the_report_draws_it_and_keeps_its_numbers(tmp_path) -> None:
    told = columns()
    points = [p for side, name in (("base_", "base"), ("", "final")) for p in fronts.points(told, side, name)]
    results = Results(
        "Front", {}, {"win_rate": Estimate(60.0)}, passed=True, reasons=[], front=points, front_of=REWARDS
    )
    page = report.write(tmp_path, results).read_text()
    assert "The front of two rewards" in page
    assert "in degrees from relevance to length" in page
    assert (tmp_path / "front.png").read_bytes()[1:4] == b"PNG"
    with (tmp_path / "front.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["policy"], row["angle"]) for row in rows][3:] == [
        ("final", "-45.0"),
        ("final", "0.0"),
        ("final", "45.0"),
    ]
    assert float(rows[3]["relevance"]) == pytest.approx(0.8)
