"""Load the tools that a panel's parts need, and only those."""

from __future__ import annotations

from pathlib import Path

from stages.config import Run
from stages.panel import Tools


def load(needs: set[str], run: Run, *, encoder: Path, model: Path, scorer: Path | None = None) -> Tools:
    """The tools named by `needs` (a subset of `encoder`, `model`, `reward_model`), read from their folders.

    Raises:
        UserError: a folder without a usable model.
    """
    from stages.policies import family
    from stages.policies.encoder import Encoder

    device, _ = run.place()
    return Tools(
        encoder=Encoder.load(encoder, device=device) if "encoder" in needs else None,
        policy=family.load(run, model) if "model" in needs else None,
        scorer=family.scorer(run, scorer) if "reward_model" in needs and scorer else None,
    )
