"""What every test shares: one thread a process, no network, and which tests stay in one process.

`make test` runs two processes. Tests that share a costly fixture (the finished graph, the Prefect server) belong to
one group, so that it is made once.
"""

import os
import shutil
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
hypothesis.settings.register_profile("shared machine", deadline=None)
hypothesis.settings.load_profile("shared machine")


@pytest.hookimpl(tryfirst=True)  # before the one that reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the tests of a folder with a costly fixture one process; leave out what only `make bench` asks for."""
    long = [item for item in items if item.get_closest_marker("bench")]
    if long and "bench" not in config.option.markexpr:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    for item in items:
        folder = Path(item.path).parent.name
        if folder in {"pipeline", "flows"}:
            item.add_marker(pytest.mark.xdist_group(folder))


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A database with MLflow's tables and nothing in them; making one takes seconds, copying it does not."""
    from stages import mirror

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        mirror.connect()
    return path


@pytest.fixture
def client(tmp_path, monkeypatch, empty_database):
    """An empty working folder with a database of its own."""
    from mlflow import MlflowClient

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_EXPERIMENT_NAME", "PREFLOOP_RUN", "PREFLOOP_RECIPE", "PREFECT__FLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    Path("params.yaml").write_text("run:\n  seed: 7\noptimize:\n  learning_rate: 5e-7\n")
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
