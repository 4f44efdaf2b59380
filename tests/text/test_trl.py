"""The training of the stages beside TRL's DPOTrainer: same pairs, same order, same initial adapter, same losses."""

import itertools

import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[bench]'")

from benchmarks import _dpo, _pairs  # noqa: E402
from stages.config import Run  # noqa: E402
from stages.policies import family, tiny  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL's own warnings
RUN = Run(family="text", seed=3, device="cpu", dtype="float32", policy={"max_length": 256})
EPOCHS, PAIRS, RANK = 2, 40, 4  # 20 steps


@pytest.fixture
def start(client, tmp_path):
    """A folder with the pairs and the adapter that both sides start from; the model is in `model`."""
    tiny.language_model(tmp_path / "model")
    policy = family.load(RUN, tmp_path / "model")
    found = itertools.islice(_pairs.made_up((2, 12), (1, 12)), 2 * PAIRS)
    _dpo.write(tmp_path, tmp_path / "model", _pairs.fitting(policy, found, PAIRS, 256), RUN, RANK)
    return tmp_path


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": False, "precompute_ref_log_probs": True}])
def test_twenty_steps_have_the_losses_of_trl(start, settings):
    chosen = _dpo.settings(EPOCHS, RANK).model_copy(update={"learning_rate": 1e-3})
    ours = _dpo.ours(start, start / "model", RUN, chosen, start)["losses"]
    theirs = _dpo.theirs(start, start / "model", RUN, chosen, start, **settings)["losses"]
    assert len(ours) == 20
    assert ours[0] == pytest.approx(0.693147, abs=1e-6), "the policy starts as its reference"
    assert max(ours) - min(ours) > 0.05, "it learns, so that equal losses say something"
    assert ours == pytest.approx(theirs, abs=1e-4)
