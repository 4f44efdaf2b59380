"""A user's slip in naming or setting a part is one line that says what was probably meant."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages import catalogue, chosen, parts
from stages.errors import UserError


def refused(name: str, settings: dict | None = None, *, kind: str = "objective") -> str:
    """The line that a user reads."""
    with pytest.raises(UserError) as caught:
        parts.check(parts.find(kind, name), settings or {}, where="params.yaml:9 optimize.objective")
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("params.yaml"), "it says where"
    return line


def test_unknown_part() -> None:
    assert "no objective is called 'simop'; did you mean 'simpo'?" in refused("simop")


def test_unknown_part_like_no_other_lists_all() -> None:
    line = refused("zzzzzz")
    assert all(name in line for name in parts.names("objective"))


def test_a_file_that_is_no_part_is_not_found() -> None:
    assert "__init__" not in parts.names("objective")
    assert "no objective is called '__init__'" in refused("__init__")


def test_unknown_setting() -> None:
    assert "objective 'simpo' has no setting 'gama'; did you mean 'gamma'?" in refused("simpo", {"gama": 1.0})


def test_setting_of_a_part_without_settings() -> None:
    assert "objective 'nll' has no setting 'beta'; remove it" in refused("nll", {"beta": 1.0})


@pytest.mark.parametrize("value", ["much", None, [0.1]])
def test_wrong_type(value: object) -> None:
    line = refused("dpo", {"beta": value})
    assert f"beta = {value!r}" in line
    assert "number" in line
    assert "stages/optimize/objectives/dpo.py" in line


def test_wrong_type_of_a_switch() -> None:
    assert "length_normalize = 'sometimes'" in refused("ipo", {"length_normalize": "sometimes"})


@pytest.mark.parametrize(
    ("name", "settings", "limit"),
    [
        ("dpo", {"beta": 0}, "greater than 0"),
        ("dpo", {"label_smoothing": 0.6}, "less than or equal to 0.5"),
        ("simpo", {"gamma": -1}, "greater than or equal to 0"),
    ],
)
def test_out_of_range(name: str, settings: dict, limit: str) -> None:
    line = refused(name, settings)
    assert limit in line
    assert f"optimize.objective.{next(iter(settings))}" in line


def test_legal_settings_are_typed_and_defaults_filled() -> None:
    assert parts.check(parts.find("objective", "simpo"), {"beta": 10}) == {"beta": 10.0, "gamma": 1.0}


def test_a_found_part_knows_its_file_feedback_and_spec() -> None:
    found = parts.find("objective", "kto")
    assert found.file == "stages/optimize/objectives/kto.py"
    assert (parts.ROOT / found.file).is_file()
    assert found.feedback == "Singles"
    assert found.spec.needs == ("reference", "mismatch")
    assert list(found.settings) == ["beta", "lambda_desirable", "lambda_undesirable"]


def test_the_parts_table_is_fresh() -> None:
    table = (parts.ROOT / "stages/PARTS.md").read_text(encoding="utf-8")
    assert table == catalogue.table(), "run `make parts`"


def test_the_files_of_a_panel_are_those_of_its_parts_under_any_key() -> None:
    rewards = {"length": {"weight": 1.0}, "held_out": {"name": "digit", "half": "second"}, "slip": None}
    found = chosen.chosen({"label": {"rewards": rewards}})
    named = {file for file in found["label"] if file.startswith("stages/label/rewards/")}
    parts_and_helpers = ("length", "digit", "slip", "_text", "_pixels")
    assert named == {f"stages/label/rewards/{name}.py" for name in parts_and_helpers}
    assert found["label"]["stages/label/rewards/digit.py"]
    assert found["label"]["stages/label/rewards/slip.py"] == ""
    assert found["evaluate"] == found["label"]


def test_what_a_chosen_part_reads_and_imports_counts_too() -> None:
    """The judge of personas is trained on a YAML file; directions are read by a pairing; revisions by a sampler."""
    params = {
        "label": {"rewards": {"apc": {}}, "pairing": {"name": "directed"}},
        "generate": {"sampler": {"name": "revise"}},
    }
    found = chosen.chosen(params)
    assert {"stages/personas/facts.yaml", "stages/personas/judge.py", "stages/directions.py"} <= set(found["label"])
    assert "stages/revision.py" in found["generate"]
    assert "stages/personas/judge.py" not in found["generate"]


@pytest.mark.parametrize("file", sorted((parts.ROOT / "flows/recipes").glob("*/*.yaml")), ids=lambda file: file.stem)
def test_a_recipe_says_where_it_is_from_and_how_it_runs(file: Path) -> None:
    paper, command, *_ = file.read_text().splitlines()
    assert re.match(rf"# python -m flows\.(align|sweep) --recipes? {file.stem}\b", command)
    assert re.search(r"\barXiv \d{4}\.\d{5}\b|^# No paper: \w", paper)
    objective = YAML(typ="safe").load(file).get("optimize", {}).get("objective")
    if objective and objective["name"] == file.stem:  # one objective serves the recipes of several papers
        assert parts.find("objective", file.stem).spec.paper.removeprefix("arXiv ") in paper
