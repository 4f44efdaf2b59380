"""Every benchmark runs: on a tiny model, in seconds, and its section of the results says what it should."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import _pairs, _report, rate, scaling

ROOT = Path(__file__).resolve().parent.parent
PEERS = {"dpo", "grpo", "beta_sweep"}  # beside TRL
SAID = {  # words of a section
    "dpo": ["samples/s, three epochs", "against TRL, fastest, peak memory"],
    "sampling": ["generate_batch", "Greedy: 2 of 2 answers"],
    "grpo": ["tokens a step", "a step against TRL, fastest"],
    "beta_sweep": ["Stages that ran at the last beta: parts, optimize.", "eight runs, s"],
    "scaling": ["K, priced", "R^2"],
    "rate": ["share of the ceiling", "attention"],
    "startup": ["import of stages.optimize.run"],
}


def run(name: str, results: Path) -> subprocess.CompletedProcess:
    words = [name, "--quick", "--threads", "1", "--results", str(results)]
    words += ["--data", str(results.parent / "none")] if name in ("dpo", "beta_sweep", "rate") else []
    command = [sys.executable, "-m", f"benchmarks.{words[0]}", *words[1:]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=290)


SHORT = {"dpo", "sampling", "rate"}
KINDS = [pytest.param(n, marks=pytest.mark.slow if n in SHORT else pytest.mark.bench) for n in sorted(SAID)]


@pytest.mark.parametrize("name", KINDS)
def test_a_benchmark_runs_and_publishes(name, tmp_path):
    if name in PEERS and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed: pip install -e '.[bench]'")
    done = run(name, tmp_path / "RESULTS.md")
    assert done.returncode == 0, done.stderr[-3000:]
    told = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert f"## {name}\n\n`python -m benchmarks.{name} --quick" in told
    assert "1 thread(s); Python" in told
    for words in SAID[name]:
        assert words in told


@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_missing_trl_is_one_line(name, tmp_path):
    """A module finder that knows no TRL stands in front of the others."""
    hide = (
        "import importlib.util as u, runpy, sys; find = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name == 'trl' else find(name, *more); "
        f"sys.argv = ['benchmarks.{name}', '--quick', '--results', {str(tmp_path / 'r.md')!r}]; "
        f"runpy.run_module('benchmarks.{name}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", hide], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: benchmarks: TRL is not installed; pip install -e '.[bench]' (trl==1.16.0)"
    )
    assert not (tmp_path / "r.md").exists()


def test_sections_stand_in_order_and_a_later_run_replaces_its_own(tmp_path):
    file = tmp_path / "RESULTS.md"
    for title, body in (("b", "one"), ("a", "two"), ("b", "three")):
        _report.publish(title, body, file)
    assert file.read_text().split("\n\n") == [
        "# Results",
        "Written by the scripts beside it.",
        "## a",
        "two",
        "## b",
        "three\n",
    ]


def test_a_goal_is_reached_or_missed():
    assert _report.goal("x", [1.0, 3.0, 2.0], 2.0) == "- x: 2.00 (1.00 to 3.00), goal at least 2: reached"
    assert _report.goal("x", [2.1], 2.0, at_most=True) == "- x: 2.10, goal at most 2: missed"


def test_peak_memory_is_that_of_this_process():
    script = "from benchmarks._contest import peak; a = peak(); held = bytearray(200 * 2**20); print(a, peak())"
    told = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    before, after = map(float, told.stdout.split())
    assert 0.19 < after - before < 0.25


def test_the_least_squares_line():
    slope, intercept, straight = scaling.fit([1, 2, 3], [1.0, 2.0, 4.0])  # mean 7/3, residuals 1/6, -1/3, 1/6
    assert (slope, intercept) == pytest.approx((1.5, -2 / 3))
    assert straight == pytest.approx(1 - (1 / 6) / (14 / 3))


def test_tokens_and_pairs_of_a_prompt_that_two_answers_share():
    rows = [([1, 2, 3], [4, 5]), ([1, 2, 3], [6, 7, 8])]
    assert rate.tokens(rows) == 3 + 1 + 2
    mask = 0
    for _, answer in rows:
        whole = 3 + len(answer) - 1
        mask += whole * (whole + 1) // 2 - 6  # a causal triangle less that of the prompt
    assert rate.seen(rows) == 6 + mask


def test_useful_work_of_a_model_counts_what_is_done(tmp_path):
    """One prompt token, two answers of one token: no attention among answers, layer by layer by hand."""
    from stages.policies import tiny
    from stages.policies.text.policy import TextPolicy

    tiny.language_model(tmp_path)
    policy = TextPolicy.load(tmp_path, trainable=True, lora_r=rate.RANK)
    counted = rate.useful(policy, [([1], [2]), ([1], [3])])
    d, kv, hidden, layers = 32, 16, 64, 2
    layer = 2 * d * d + 2 * d * kv + 3 * d * hidden
    assert counted["layers"] == 2 * layers * layer - (d * d + 2 * d * kv)
    assert counted["head"] == 2 * 2 * policy.causal.config.vocab_size * d
    assert counted["attention"] == 6 * 1 * layers * d
    ends = 2 * (d + d) + 2 * (d + kv) + 3 * (d + hidden)
    assert counted["adapters"] == 3 * layers * rate.RANK * ends


def test_made_up_pairs_are_as_long_as_asked_for():
    pairs = [one for one, _ in zip(_pairs.made_up((5, 9), (2, 3), seed=1), range(50))]
    assert {len(one.messages[0].content.split()) for one in pairs} == {5, 6, 7, 8, 9}
    assert {len(side.text.split()) for one in pairs for side in (one.chosen, one.rejected)} == {2, 3}
