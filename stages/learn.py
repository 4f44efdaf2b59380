"""Preference optimization of a policy: what the optimize stage and a self-play round do alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import feed, loop, parts
from stages.batches import Item
from stages.config import Choice, Run, Training
from stages.errors import UserError
from stages.feed import Cache, Example
from stages.online import Online
from stages.parts import Part
from stages.watch import Watch, Watcher

if TYPE_CHECKING:
    from stages.journal import Journal
    from stages.policies.family import Policy

GIVEN = {"reference", "scores", "entropy", "mismatch", "behaviour"}  # needs that labelled preferences can meet


class Optimize(Training):
    """The node `optimize`: an objective and how it is trained."""

    objective: Choice = Choice(name="dpo")
    soft_labels: bool = (
        False  # learn from P(chosen is better) as labelled; else, as the papers do, from the order alone
    )
    curriculum: Choice | None = None  # in which phases pairs are learned from; each takes num_train_epochs
    moving_reference: bool = False  # each phase stays close to the policy that it starts from, not to the first one
    online: Online | None = None  # who scores the policy's own samples, for objectives that learn from those
    watch: Watch | None = None  # looks at samples as optimize goes; rounds have their gate


def check(settings: Optimize, run: Run, *, offline: bool = True) -> Part:
    """The objective exists, takes its settings, fits the family, and needs nothing that is not there.

    Raises:
        UserError: naming what does not fit.
    """
    part, _ = settings.objective.part("objective", "optimize.objective")
    place = "params.yaml optimize.objective.name"
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
    check_phases(settings, part)
    return part


def check_phases(settings: Optimize, objective: Part) -> None:
    """The curriculum exists, orders what the objective learns from, and has a reference to move if it shall.

    Raises:
        UserError: naming what does not fit.
    """
    place = "params.yaml optimize.moving_reference"
    if settings.curriculum is not None:
        settings.curriculum.part("curriculum", "optimize.curriculum")
        if objective.feedback != "Pairs" or objective.spec.online:
            what = f"a curriculum orders pairs, objective '{objective.name}' learns from something else"
            mend = "drop the curriculum, or choose an objective on pairs"
            raise UserError(what, where="params.yaml optimize.curriculum", mend=mend)
    elif settings.moving_reference:
        mend = "add a curriculum: the reference moves where a phase begins"
        raise UserError("there are no phases", where=place, mend=mend)
    if settings.moving_reference and "reference" not in objective.spec.needs:
        raise UserError(f"objective '{objective.name}' has no reference", where=place, mend="remove it")


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
        cache = Cache({**cache, **priced(policy, list(mismatches.values()), scratch / "mismatch.safetensors")})

    def loss(examples: Sequence[Example], epoch: int) -> tuple:
        batch = feed.batch(
            policy, examples, objective.spec.needs, cache, mismatches, soft=settings.soft_labels, draw=epoch
        )
        return objective.function(batch, **chosen)

    turns = phases(wanted, settings)
    homes = [scratch / f"phase-{n + 1}" for n in range(len(turns))] if len(turns) > 1 else [scratch]
    begun = max((n for n, home in enumerate(homes) if (home / loop.CHECKPOINT).exists()), default=0)  # the last one
    summary: dict[str, float] = {}
    for n in range(begun, len(turns)):
        if n and settings.moving_reference:
            cache = moved(policy, turns[n], settings, homes[n])
        summary = loop.train(
            policy,
            turns[n],
            loss,
            settings,
            seed=seed,
            scratch=homes[n],
            journal=journal,
            label=f"{label} {n + 1}/{len(turns)}" if len(turns) > 1 else label,
            size=lambda example: max(item.size for item in feed.items(example)),
            after=sum(loop.length(len(turn), settings) for turn in turns[:n]),
            watch=watch,
        )
        if "watch/stop" in summary:
            break
    return summary


def phases(wanted: Sequence[Example], settings: Optimize) -> list[list[Example]]:
    """What is learned from in each phase: all of it in one where there is no curriculum."""
    if settings.curriculum is None:
        return [list(wanted)]
    part, chosen = settings.curriculum.part("curriculum", "optimize.curriculum")
    return [[wanted[i] for i in phase] for phase in part.function(wanted, **chosen)]


def moved(policy: Policy, examples: Sequence[Example], settings: Optimize, home: Path) -> Cache:
    """Log-probs of a phase's answers under the policy that it starts from."""
    return priced(policy, feed.at_draws(policy, examples, settings.num_train_epochs), home / "reference.safetensors")


def priced(policy: Policy, wanted: Sequence[Item], kept: Path) -> Cache:
    """Log-probs of answers under a policy as it is now, kept where a run that resumes with a later one finds them."""
    if not kept.exists():
        feed.reference(policy, wanted).save(kept, {})
    return Cache.load(kept, {})
