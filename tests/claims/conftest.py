"""Claims run where they are asked for, `make claims`, and nowhere else: each trains dozens of policies."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test that measures is a claim, with half an hour's time; without `-m claims` none is selected."""
    files = {file for file in HERE.glob("test_*.py") if file.name != "test_recorded.py"}
    ours = [item for item in items if item.path in files]
    for item in ours:
        item.add_marker(pytest.mark.claims)
        item.add_marker(pytest.mark.timeout(1800))
    if "claims" not in config.option.markexpr:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The same sums in the same order on every machine, and one core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
