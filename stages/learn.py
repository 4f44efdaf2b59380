"""Preference optimization of a policy: what the optimize stage and a self-play round do alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import feed, loop, parts
from stages.config import Choice, Run, Training
from stages.errors import UserError
from stages.feed import Cache, Example
from stages.online import Online
from stages.parts import Part
from stages.watch import Watch, Watcher

if TYPE_CHECKING:
    from stages.journal import Journal
    from stages.policies.family import Policy

GIVEN = {"reference", "scores", "entropy", "mismatch"}  # needs that labelled preferences can meet


class Optimize(Training):
    """The node `optimize`: an objective and how it is trained."""

    objective: Choice = Choice(name="dpo")
    soft_labels: bool = (
        False  # learn from P(chosen is better) as labelled; else, as the papers do, from the order alone
    )
    online: Online | None = None  # who scores the policy's own samples, for objectives that learn from those
    watch: Watch | None = None  # looks at samples as optimize goes; rounds have their gate


def check(objective: Choice, run: Run, *, where: str, offline: bool = True) -> Part:
    """The objective exists, takes its settings, fits the family, and needs nothing that is not there.

    Raises:
        UserError: naming what does not fit.
    """
    part, _ = objective.part("objective", where)
    place = f"params.yaml {where}.name"
    parts.fits(part, run.family, where=place)
    if part.spec.online and offline:
        raise UserError(
            f"objective '{part.name}' learns online, a round from labelled preferences",
            where=place,
            mend="drop the rounds, or choose an offline objective",
        )
    if not part.spec.online and set(part.spec.needs) - GIVEN:
        lacking = ", ".join(sorted(set(part.spec.needs) - GIVEN))
        raise UserError(
            f"objective '{part.name}' needs {lacking}, which labelled preferences do not hold",
            where=place,
            mend="choose an offline objective",
        )
    return part


def learn(
    policy: Policy,
    labelled: Sequence[Example],
    settings: Optimize,
    cache: Cache,
    *,
    seed: int,
    scratch: Path,
    journal: Journal,
    label: str,
    watch: Watcher | None = None,
) -> dict[str, float]:
    """Train a policy in place on preferences.

    Args:
        policy: where it starts from.
        labelled: pairs or singles.
        settings: the objective and the loop's settings.
        cache: reference log-probs of all their completions.
        seed: decides the order.
        scratch: where checkpoints lie; the policy of step 0 also prices the mismatched answers there, once.
        journal: where metrics go.
        label: name on the progress line.
        watch: looks at samples as training goes.
    """
    objective, chosen = settings.objective.part("objective", "optimize.objective")
    wanted = feed.examples(objective, labelled, where="params.yaml optimize.objective.name")
    if policy.seeded and "reference" in objective.spec.needs:
        cache.of(feed.items(wanted[0], settings.num_train_epochs - 1)[0])  # the last epoch's draw is there
    mismatches = feed.mismatched(wanted) if "mismatch" in objective.spec.needs else {}
    if mismatches:
        kept = scratch / "mismatch.safetensors"
        if not kept.exists():  # step 0: the policy is still the reference
            feed.reference(policy, list(mismatches.values()), label="mismatch").save(kept, {})
        cache = Cache({**cache, **Cache.load(kept, {})})

    def loss(examples: Sequence[Example], epoch: int) -> tuple:
        batch = feed.batch(
            policy, examples, objective.spec.needs, cache, mismatches, soft=settings.soft_labels, draw=epoch
        )
        return objective.function(batch, **chosen)

    return loop.train(
        policy,
        wanted,
        loss,
        settings,
        seed=seed,
        scratch=scratch,
        journal=journal,
        label=label,
        size=lambda example: max(item.size for item in feed.items(example)),
        watch=watch,
    )
