"""params.yaml to typed configs: every fault names its line and what to write instead."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import config
from stages.config import Choice, Config, Run, Training
from stages.errors import UserError


class Node(Training):
    objective: Choice = Choice(name="dpo")


class Settings(Config):
    run: Run = Run()
    optimize: Node = Node()


def load(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    return config.load(Settings, file)


def test_yaml_1_2_reads_exponents_as_numbers(tmp_path):
    assert load(tmp_path, "optimize: {learning_rate: 5e-7}").optimize.learning_rate == 5e-7


def test_defaults_are_filled_and_configs_are_frozen(tmp_path):
    read = load(tmp_path, "run: {seed: 3}")
    assert read.run.seed == 3
    assert read.optimize.objective.name == "dpo"
    with pytest.raises(ValueError, match="frozen"):
        read.run.seed = 4  # type: ignore[misc]


def test_other_stages_nodes_are_none_of_its_business(tmp_path):
    assert load(tmp_path, "evaluate: {anything: 1}\nrun: {seed: 1}").run.seed == 1


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("run:\n  seed: 0\n  sed: 1\n", 3, "did you mean 'seed'?"),
        ("run:\n  seed: -1\n", 2, "greater than or equal to 0"),
        ("run:\n  seed: many\n", 2, "integer"),
        ("optimize:\n  lora_r: 4\n  learning_rte: 1e-4\n", 3, "did you mean 'learning_rate'?"),
        ("optimize:\n  objective:\n    beta: 0.1\n", 2, "add it"),
        ("run: 3\n", 1, "correct the value"),
        ("run: {seed: 1\noptimize: [", 2, "mend the line"),
    ],
)
def test_a_fault_names_its_line(tmp_path, text, line, says):
    with pytest.raises(UserError, match="params.yaml") as caught:
        load(tmp_path, text)
    assert f"params.yaml:{line}" in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_says_where_to_go(tmp_path):
    with pytest.raises(UserError, match="folder that holds dvc.yaml"):
        config.load(Settings, tmp_path / "params.yaml")


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.none(), st.integers(), st.text(), st.lists(st.floats()))))
def test_any_mapping_is_a_config_or_one_line(tmp_path_factory, node):
    from ruamel.yaml import YAML

    file = tmp_path_factory.mktemp("any") / "params.yaml"
    with file.open("w") as out:
        YAML().dump({"run": node}, out)
    with contextlib.suppress(UserError):  # anything else that escapes fails the test
        assert isinstance(config.load(Settings, file), Settings)


def test_a_chosen_part_is_found_and_its_settings_checked():
    part, settings = Choice(name="dpo", beta=0.3).part("objective", "optimize.objective")
    assert part.name == "dpo"
    assert settings == {"beta": 0.3, "label_smoothing": 0.0, "clip": None}
    with pytest.raises(UserError, match="no setting 'bet'"):
        Choice(name="dpo", bet=0.3).part("objective", "optimize.objective")


def test_a_device_that_is_not_there_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    with pytest.raises(UserError, match="no cuda device"):
        Run(device="cuda").place()
    assert Run().place() == ("cpu", torch.float32) or torch.backends.mps.is_available()
