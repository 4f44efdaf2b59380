"""How far a guard agrees with people, by hand and as a command."""

import json
import subprocess
import sys

import pytest

from stages.errors import UserError
from stages.label.reliability import reliability
from tests.label.guarded import NO, YES, folder

ROWS = [(NO, True), (NO, True), (NO, False), (YES, False), (YES, False), (YES, True)]


def test_figures_by_hand():
    """Said unsafe: 3, right in 2; unsafe in truth: 3. p_o = 4/6, p_e = 1/2, kappa = (4/6 - 1/2) / (1/2) = 1/3."""
    said, votes = [text == YES for text, _ in ROWS], [not safe for _, safe in ROWS]
    found = reliability(said, votes)
    wanted = {"accuracy": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "kappa": 1 / 3, "unsafe": 0.5, "n": 6}
    assert found == pytest.approx(wanted)


def test_a_judge_that_always_says_the_same_has_no_kappa_above_chance():
    found = reliability([False] * 4, [True, False, False, False])
    assert (found["accuracy"], found["precision"], found["recall"], found["kappa"]) == (0.75, 0.0, 0.0, 0.0)
    assert reliability([False] * 4, [False] * 4)["kappa"] == 1.0


def test_nothing_to_compare_is_one_line():
    with pytest.raises(UserError, match="nothing to compare"):
        reliability([], [])


def command(tmp_path, rows, *more):
    file = tmp_path / "votes.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = [sys.executable, "-m", "stages.label.reliability", str(file), *more]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_prints_figures_and_no_text(tmp_path):
    rows = [{"prompt": "Do it.", "completion": text, "label": safe} for text, safe in ROWS]
    done = command(tmp_path, rows)
    assert done.returncode == 0, done.stderr
    assert "kappa: 0.333" in done.stdout
    assert "sorry" not in done.stdout + done.stderr
    by_model = command(tmp_path, rows, "--model", str(folder() / "labels"))
    assert by_model.returncode == 0, by_model.stderr
    assert by_model.stdout != done.stdout


def test_a_wrong_row_is_one_line(tmp_path):
    done = command(tmp_path, [{"prompt": "Do it.", "completion": NO, "label": "yes"}])
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "votes.jsonl:1: label" in done.stderr
    assert NO not in done.stderr
