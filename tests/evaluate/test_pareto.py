"""Fronts of several runs: which points are on them, what they enclose, and the command that writes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from stages import declared, directions, records
from stages.directions import Directions
from stages.errors import UserError
from stages.evaluate import fronts, pareto
from stages.panel import Panel
from tests.label.world import candidate, prompt

REWARDS = ["relevance", "length"]


def run_of(folder: Path, gains: dict[float | None, tuple[float, float]]) -> Path:
    """A run whose final policy answers two prompts at each angle with these rewards; the base model has none."""
    wanted = Directions(first="relevance", second="length", test=tuple(a for a in gains if a is not None) or (0.0,))
    asked = [prompt(name, f"Question {name}?") for name in "ab"]
    test = directions.held_out(asked, wanted) if None not in gains else asked
    base, final = [], []
    for ask in test:
        first, second = gains[fronts.angle(ask, REWARDS)]
        move = 0.1 if ask.id.startswith("a") else -0.1
        base.append(candidate("b", of=ask.id, scores={"relevance": 0.0, "length": 0.0}))
        final.append(candidate("f", of=ask.id, scores={"relevance": first + move, "length": second}))
    for path, rows in ((pareto.PROMPTS, test), (pareto.ANSWERS, base + final)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        records.write(folder / path, rows)
    (folder / declared.FILE).parent.mkdir()
    declared.write(folder / declared.FILE, declared.of(Panel(rewards={"relevance": {}, "length": {}})))
    return folder


@pytest.mark.parametrize("seed", range(5))
def test_front_against_its_definition(seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 4, (12, 3)).tolist()
    for one, on in zip(values, fronts.front(values), strict=True):
        beaten = any(all(x >= y for x, y in zip(other, one)) and other != one for other in values)
        assert on is not beaten


def test_equal_points_are_both_on_the_front() -> None:
    assert fronts.front([[1.0, 0.0], [1.0, 0.0], [0.5, 0.0]]) == [True, True, False]


@pytest.mark.parametrize("seed", range(3))
def test_hypervolume_of_two_rewards_is_the_area_of_a_staircase(seed: int) -> None:
    values = np.random.default_rng(seed).random((9, 2))
    area, top = 0.0, 0.2
    for x, y in sorted(values.tolist(), reverse=True):
        area, top = area + max(0.0, y - top) * max(0.0, x - 0.1), max(top, y if x > 0.1 else top)
    assert fronts.hypervolume(values, [0.1, 0.2]) == pytest.approx(area)


def test_what_is_dominated_or_below_the_floor_adds_nothing() -> None:
    both = [[0.5, 0.5], [0.8, 0.2]]
    assert fronts.hypervolume([*both, [0.4, 0.1], [-1.0, 5.0]], [0.0, 0.0]) == fronts.hypervolume(both, [0.0, 0.0])


def test_points_of_directions_are_means_of_the_final_policy(tmp_path: Path) -> None:
    gains = {-45.0: (0.8, 0.2), 0.0: (0.9, 0.5), 22.5: (0.6, 0.75)}
    found = pareto.points(run_of(tmp_path / "dpa", gains), REWARDS)
    assert [p.name for p in found] == ["dpa -45", "dpa 0", "dpa 22.5"]
    for point, wanted in zip(found, gains.values(), strict=True):
        assert point.values == pytest.approx(wanted)


def test_the_command_writes_the_front_of_all_runs(tmp_path: Path) -> None:
    one = run_of(tmp_path / "dpa", {-45.0: (0.8, 0.2), 45.0: (0.4, 0.6)})
    two = run_of(tmp_path / "dpo", {None: (0.3, 0.3)})
    app = typer.Typer()
    app.command()(pareto.main)
    told = CliRunner().invoke(
        app, [str(one), str(two), *(word for r in REWARDS for word in ("--rewards", r)), "--out", str(tmp_path / "out")]
    )
    assert told.exit_code == 0, told.output
    written = json.loads((tmp_path / "out/front.json").read_text())
    assert [(p["name"], p["front"]) for p in written["points"]] == [("dpa -45", True), ("dpa 45", True), ("dpo", False)]
    assert written["hypervolume"] == pytest.approx(0.8 * 0.2 + 0.4 * 0.4)
    assert written["hypervolume_of"] == pytest.approx({"dpa": 0.32, "dpo": 0.09})
    assert (tmp_path / "out/front.png").read_bytes()[1:4] == b"PNG"


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "dpo", {None: (0.3, 0.3)})
    with pytest.raises(UserError, match="no answer has a score 'sentiment'.*name one of length, relevance"):
        pareto.points(folder, ["relevance", "sentiment"])
    with pytest.raises(UserError, match="no such file"):
        pareto.points(tmp_path / "nowhere", REWARDS)
    (folder / declared.FILE).unlink()
    with pytest.raises(UserError, match="rewards.json: no such file; run the label stage, which writes it"):
        pareto.points(folder, REWARDS)


def test_angles_are_those_of_the_stated_numbers() -> None:
    wanted = Directions(first="relevance", second="length")
    for angle in (-45.0, -22.5, 0.0, 22.5, 45.0):
        assert fronts.angle(directions.at(prompt(), wanted, angle), REWARDS) == angle
    assert fronts.angle(prompt(), REWARDS) is None
