"""DVC by its command line: streaming, mistakes, locks, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import dvc, recipes
from stages.errors import UserError
from tests.flows import project


@pytest.fixture(autouse=True)
def _environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in project.environment(folder, PREFLOOP_GRACE="2").items():
        monkeypatch.setenv(key, value)


def change(folder: Path, overlay: dict) -> None:
    file = folder / "params.yaml"
    recipes.write(file, recipes.apply(recipes.read(file), overlay))


def wait_for_step(folder: Path, seconds: float = 20) -> int:
    """Process id of the first stage that starts."""
    end = time.monotonic() + seconds
    while not project.log(folder):
        assert time.monotonic() < end, "no stage started"
        time.sleep(0.05)
    return int(project.log(folder)[0][1])


def wait_for_end(pid: int, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"process {pid} was left behind"
        time.sleep(0.05)


def test_a_stage_runs_once_and_its_lines_are_streamed(folder: Path) -> None:
    lines: list[str] = []
    assert dvc.repro(folder, "prepare", report=lines.append) is True
    assert "prepare works" in lines
    assert not any("git add" in line for line in lines)
    assert dvc.repro(folder, "prepare") is False
    assert set(dvc.status(folder)) == {"optimize", "selfplay@r1", "evaluate"}
    assert dvc.repro(folder, "evaluate", single=False) is True
    assert dvc.status(folder) == {}


def test_a_mistake_is_passed_on_as_the_stages_own_line(folder: Path) -> None:
    change(folder, {"optimize": {"objective": {"beta": -1}}})
    dvc.repro(folder, "prepare")
    with pytest.raises(UserError) as error:
        dvc.repro(folder, "optimize")
    assert str(error.value) == "params.yaml optimize.objective.beta: -1 is negative; use beta > 0"


def test_another_failure_names_stage_and_code(folder: Path) -> None:
    (folder / "steps.py").write_text("raise SystemExit('disk on fire')")
    with pytest.raises(dvc.DvcError, match="stage prepare failed with exit code 1: .*disk on fire"):
        dvc.repro(folder, "prepare")
    with pytest.raises(dvc.DvcError, match="nosuch"):
        dvc.repro(folder, "nosuch")


def test_outside_of_a_project(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match="no DVC project here"):
        dvc.stages(tmp_path_factory.mktemp("empty"))


def test_a_stage_comes_after_those_it_needs_wherever_it_stands_in_the_file(folder: Path) -> None:
    assert dvc.stages(folder) == ["prepare", "optimize", "selfplay@r1", "evaluate"]
    file = folder / "dvc.yaml"
    file.write_text(file.read_text().replace("stages:\n", FIRST, 1))
    assert dvc.stages(folder) == ["prepare", "optimize", "look", "selfplay@r1", "evaluate"]


FIRST = """stages:
  look:
    cmd: "true"
    deps:
    - data/optimize
    outs:
    - data/look
"""

HOLD = """
import sys, time
from dvc.repo import Repo
with Repo(".").lock:
    print("held", flush=True)
    time.sleep(float(sys.argv[1]))
"""


def test_a_held_lock_is_waited_for(folder: Path) -> None:
    """DVC itself gives up after three seconds."""
    with subprocess.Popen([sys.executable, "-c", HOLD, "6"], cwd=folder, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        lines: list[str] = []
        assert dvc.repro(folder, "prepare", report=lines.append) is True
        assert any("lock is held" in line for line in lines)


def test_a_lock_file_that_a_kill_cut_off_is_made_anew(folder: Path) -> None:
    torn = folder / ".dvc/tmp/rwlock"
    torn.parent.mkdir(parents=True, exist_ok=True)
    torn.write_text("")
    assert dvc.repro(folder, "prepare") is True


def test_patience_ends(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, "60"], cwd=folder, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        try:
            with pytest.raises(dvc.DvcError, match="lock .* was held for 1 s"):
                dvc.repro(folder, "prepare", patience=1.0)
        finally:
            holder.kill()


def test_an_exception_ends_the_stage_and_leaves_the_lock_whole(folder: Path) -> None:
    change(folder, {"prepare": {"sleep": 60}})

    def report(line: str) -> None:
        if line == "prepare works":
            wait_for_step(folder)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dvc.repro(folder, "prepare", report=report)
    wait_for_end(wait_for_step(folder))
    change(folder, {"prepare": {"sleep": 0}})
    assert dvc.repro(folder, "prepare", patience=5) is True


def test_a_killed_dvc_takes_its_stage_with_it(folder: Path) -> None:
    change(folder, {"prepare": {"sleep": 60}})

    def report(line: str) -> None:
        if line == "prepare works":
            wait_for_step(folder)
            shell = psutil.Process(wait_for_step(folder)).parents()
            next(process for process in shell if "repro" in process.cmdline()).kill()

    with pytest.raises(dvc.DvcError):
        dvc.repro(folder, "prepare", report=report)
    wait_for_end(wait_for_step(folder))


CALLER = "from pathlib import Path; from flows import dvc; dvc.repro(Path.cwd(), 'prepare', report=print)"


@pytest.mark.parametrize("stubborn", [False, True], ids=["obedient", "deaf to SIGTERM"])
def test_a_killed_caller_leaves_no_process_and_no_lock(folder: Path, stubborn: bool) -> None:
    """SIGKILL gives the caller no chance to clean up."""
    change(folder, {"prepare": {"sleep": 60}})
    if stubborn:
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        (folder / "steps.py").write_text(deaf + project.STEPS_PY)
    caller = subprocess.Popen([sys.executable, "-c", CALLER], cwd=folder)
    stage = wait_for_step(folder)
    family = [process.pid for process in psutil.Process(caller.pid).children(recursive=True)]
    assert stage in family
    os.kill(caller.pid, signal.SIGKILL)
    caller.wait()
    for pid in family:
        wait_for_end(pid)
    change(folder, {"prepare": {"sleep": 0}})
    assert dvc.repro(folder, "prepare", patience=5) is True


def test_results_travel_by_the_remote(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A clone elsewhere pulls what this one pushed, and runs nothing."""
    assert dvc.remote(folder) is False
    dvc.push(folder)
    remote = tmp_path_factory.mktemp("remote")
    dvc.run(folder, "remote", "add", "--default", "store", str(remote))
    dvc.repro(folder, "evaluate", single=False)
    dvc.push(folder)
    project.run(folder, "git", "add", "-A")
    project.run(folder, "git", *project.USER, "commit", "-qm", "run")
    clone = tmp_path_factory.mktemp("clone") / "project"
    project.run(folder, "git", "clone", "-q", str(folder), str(clone))
    dvc.pull(clone)
    assert (clone / "data" / "evaluate" / "report.html").exists()
    assert [dvc.repro(clone, stage) for stage in dvc.stages(clone)] == [False] * 4
