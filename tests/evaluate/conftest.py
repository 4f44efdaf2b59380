"""What the tests of evaluation share."""

from pathlib import Path

import pytest

from stages.policies import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> tuple[Path, Path]:
    """Two untrained language models, called as the base and the final policy are."""
    folders = []
    for seed, name in enumerate(("base", "optimize")):
        folders.append(tmp_path_factory.mktemp("models") / name)
        folders[-1].mkdir()
        tiny.language_model(folders[-1], seed=seed)
    return folders[0], folders[1]
