"""claims.json tells the claims of these files, each with the verdict that its test asserts. Not measured: quick."""

import importlib
import json
from pathlib import Path

import pytest

from tests.claims.claim import FILE

HERE = Path(__file__).parent
SLUGS = sorted(json.loads(FILE.read_text(encoding="utf-8")))


def test_every_method_is_recorded() -> None:
    files = [file for file in HERE.glob("test_*.py") if "\nCLAIMS = (" in file.read_text(encoding="utf-8")]
    assert sorted(file.stem.removeprefix("test_").replace("_", "-") for file in files) == SLUGS, "run `make claims`"


@pytest.mark.parametrize("slug", SLUGS)
def test_verdicts(slug: str) -> None:
    claims = importlib.import_module(f"tests.claims.test_{slug.replace('-', '_')}").CLAIMS
    told = json.loads(FILE.read_text(encoding="utf-8"))[slug]["claims"]
    assert [(one["claim"], one["shown"], one.get("tried", "")) for one in told] == [
        (one.sentence, not one.tried, one.tried) for one in claims
    ], "run `make claims`"
