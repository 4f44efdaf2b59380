"""How a study's rows are read: numbers worked by hand on a grid of two starts, two sizes, three recipes, two seeds."""

from itertools import product
from pathlib import Path

import pytest

from stages.evaluate import study, study_figures, study_rows

AXES = ("start", "pairs")
SKILLS = {"dialogue": ["win_rate"], "nearness": ["-kl"]}


def made() -> list[dict]:
    """Win rate is 50 (10 more after sft) at the start; a gains 4 a doubling, b gains 3, c what b gains; seeds add 1."""
    rows = []
    for seed, start in product((0, 1), ("sft", "bare")):
        own = 50.0 + 10 * (start == "sft") + seed
        rows.append({"recipe": "untrained", "start": start, "pairs": "–", "seed": seed, "win_rate": own, "kl": 0.0})
        for recipe, pairs in product("abc", (16, 64)):
            gain = (4.0 if recipe == "a" else 3.0) * (2 if pairs == 64 else 1) + (seed if recipe == "a" else 0)
            kl = {"a": 5.0, "b": 2.0, "c": 1.0}[recipe]
            row = {"recipe": recipe, "start": start, "pairs": str(pairs), "seed": seed}
            rows.append(row | {"win_rate": own + gain, "kl": kl})
    return rows


def test_every_row_is_held_against_its_own_start_and_seed() -> None:
    """At 64 after sft a has 68 and 70, its starts 60 and 61: 8 and 9 more, mean 8.5, standard error 0.71 / sqrt 2."""
    rows = made()
    starts = study_rows.at(rows, recipe="untrained")
    assert study_rows.gains(study_rows.at(rows, recipe="a", start="sft", pairs=64), starts, "win_rate") == [8.0, 9.0]
    assert study_rows.gains(study_rows.at(rows, recipe="b", pairs=16), starts, "win_rate") == [3.0] * 4
    assert study_rows.gains(starts, starts, "win_rate") == [0.0] * 4, "untrained is the start itself"
    shown = study.table(rows, AXES, "untrained", ["win_rate"]).splitlines()
    assert shown[:5] == [
        "### Start: sft",
        "",
        "| Recipe | pairs | Seeds | Win rate, % |",
        "|---|---|---:|---:|",
        "| *untrained* | – | 2 | 60.50 ± 0.50 |",
    ]
    assert "| a | 64 | 2 | 69.00 ± 1.00 (+8.50 ± 0.50) |" in shown
    assert "| b | 16 | 2 | 63.50 ± 0.50 (+3.00 ± 0.00) |" in shown
    assert sum(line.startswith("### Start") for line in shown) == 2


def test_a_seed_whose_start_failed_has_no_gain() -> None:
    rows = [row for row in made() if not (row["recipe"] == "untrained" and row["seed"] == 1)]
    starts = study_rows.at(rows, recipe="untrained")
    assert study_rows.gains(study_rows.at(rows, recipe="a", start="bare", pairs=16), starts, "win_rate") == [4.0]
    assert study_rows.gains(study_rows.at(rows, recipe="a", seed=1), starts, "win_rate") == []


def test_ranks_are_of_means_and_equals_share_their_places() -> None:
    """By win rate a is first and b and c share places 2 and 3; by KL, of which less is better, c, b, a."""
    rows = made()
    assert study.ranks(rows, AXES, "untrained", ["win_rate"]) == {"a": 1.0, "b": 2.5, "c": 2.5}
    assert study.ranks(rows, AXES, "untrained", ["-kl"]) == {"a": 3.0, "b": 2.0, "c": 1.0}
    assert study.ranks(rows, AXES, "untrained", ["win_rate", "-kl"]) == {"a": 2.0, "b": 2.25, "c": 1.75}
    lacking = [row for row in rows if not (row["recipe"] == "b" and row["pairs"] == "64")]
    assert study.ranks(lacking, AXES, "untrained", ["win_rate"]) == {"a": 1.0, "b": 2.5, "c": 2.5}, "16 pairs alone"
    assert study.ranks(lacking, AXES, "untrained", ["nothing"]) == {}


def test_ranks_of_one_seed_say_so() -> None:
    shown = study.ranks_table(made(), AXES, "untrained", SKILLS)
    assert shown.splitlines()[2:6] == [
        "| Recipe | dialogue | nearness | all skills |",
        "|---|---:|---:|---:|",
        "| c | 2.5 | 1.0 | 1.8 |",
        "| a | 1.0 | 3.0 | 2.0 |",
    ]
    assert "chance" not in shown
    assert "may be chance" in study.ranks_table(study_rows.at(made(), seed=0), AXES, "untrained", SKILLS)


def test_a_curve_runs_along_the_numbers() -> None:
    own = study_rows.at(made(), recipe="a", start="bare")
    (small, low, _), (large, high, error) = study_figures.curve(own, "pairs", "win_rate")
    assert (small, large, low, high, error) == (16.0, 64.0, 55.0, 59.0, 1.0)
    assert study.numbers(made(), "pairs") == [16.0, 64.0]
    assert study.numbers(made(), "start") == []


def test_all_of_it_is_written(tmp_path: Path) -> None:
    page = study.write(
        made(), tmp_path, axes=AXES, untrained="untrained", skills=SKILLS | {"facts": ["score/exact"]}
    ).read_text()
    assert "Not measured: score/exact." in page
    for name in ("study-pairs.png", "study-starts.png"):
        assert f"({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "study-pairs.png").read_bytes()
    study.write(made(), tmp_path, axes=AXES, untrained="untrained", skills=SKILLS)
    assert (tmp_path / "study-pairs.png").read_bytes() == first


def test_a_grid_without_a_study_has_what_every_comparison_shows(tmp_path: Path) -> None:
    rows = [
        {"recipe": "rdpo", "label.flip": level, "seed": 0, "win_rate": 60 - 20 * float(level), "kl": 1.0}
        for level in ("0", "0.2", "0.4")
    ]
    page = study.write(rows, tmp_path, axes=("label.flip",), untrained=None, skills={}).read_text()
    assert "| rdpo | 0.2 | 1 | 56.00 | 1.00 |" in page
    assert "Average rank" not in page
    assert sorted(file.name for file in tmp_path.iterdir()) == ["study-label.flip.png", "study.md"]


def test_lines_are_drawn_where_the_numbers_are() -> None:
    figure = study.draw_curves(made(), "pairs", "untrained", ["win_rate", "-kl"])
    assert len(figure.axes) == 4
    assert [axes.get_xscale() for axes in figure.axes] == ["log"] * 4
    after_sft = figure.axes[0]
    lines = {bar.get_label(): bar.lines[0].get_xydata().tolist() for bar in after_sft.containers}
    assert lines["a"] == [[16.0, 65.0], [64.0, 69.0]]
    assert [text.get_text() for text in after_sft.get_xticklabels()] == ["16", "64"]
    dashed = [line.get_ydata()[0] for line in after_sft.lines if line.get_linestyle() == "--"]
    assert dashed == [pytest.approx(60.5)]
    starts = study.draw_starts(made(), "untrained", ["win_rate"]).axes[0]
    assert [text.get_text() for text in starts.get_yticklabels()] == ["untrained (the start)", "a", "b", "c"]
