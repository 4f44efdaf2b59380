"""A pipeline that ends with the policy that training starts from scores what that policy scored on the way."""

import csv
import json
from pathlib import Path

import pytest

from flows import recipes
from tests.pipeline.conftest import execute

pytestmark = pytest.mark.slow


def test_the_untrained_row_is_the_start_itself(inside: Path) -> None:
    """In the run that went on to optimize and two rounds, the start is the row `sft` of the policies."""
    with (inside / "data/evaluate/policies.csv").open(encoding="utf-8") as lines:
        on_the_way = {row["name"]: row for row in csv.DictReader(lines)}["sft"]
    params = recipes.read(inside / "params.yaml")
    recipes.write(inside / "params.yaml", recipes.apply(params, recipes.load("untrained")))
    execute("evaluate")
    told = json.loads((inside / "metrics/evaluate.json").read_text())
    named = {"win_rate": "win_rate", "kl": "kl", "length": "length", "repetition": "diversity/repetition"}
    for column, metric in named.items():
        assert float(on_the_way[column]) == told[metric], column
