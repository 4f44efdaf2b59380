"""Preference optimization of a policy: what the optimize stage and a self-play round do alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field

from stages import diagnose, feed, loop, parts
from stages.batches import Item, Pairs
from stages.cached import Cache
from stages.config import Choice, Run, Training
from stages.diagnose import Diagnose, Monitor
from stages.errors import UserError
from stages.feed import Example
from stages.online import Online
from stages.parts import Part
from stages.preferences import Preference
from stages.watch import Watch

if TYPE_CHECKING:
    from stages.journal import Journal
    from stages.policies.family import Policy

Look = Callable[[int, bool], dict[str, float]]  # number of steps done, whether that is all -> what is logged
# needs that labelled preferences can meet
GIVEN = {"reference", "scores", "entropy", "mismatch", "behaviour", "hidden", "key_rank"}


class Optimize(Training):
    """The node `optimize`: an objective and how it is trained."""

    objective: Choice = Choice(name="dpo")
    soft_labels: bool = (
        False  # learn from P(chosen is better) as labelled; else, as the papers do, from the order alone
    )
    preferences: Annotated[int, Field(ge=1)] | None = None  # the first so many are learned from; else all
    curriculum: Choice | None = None  # in which phases pairs are learned from; each takes num_train_epochs
    moving_reference: bool = False  # each phase stays close to the policy that it starts from, not to the first one
    online: Online | None = None  # who scores the policy's own samples, for objectives that learn from those
    watch: Watch | None = None  # looks at samples as optimize goes; rounds have their gate
    diagnose: Diagnose | None = None  # looks at the likelihoods of preferences as it is learned from them


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
    if part.spec.online and settings.preferences is not None:
        what, mend = f"objective '{part.name}' learns online, not from labels alone", "remove it"
        raise UserError(what, where="params.yaml optimize.preferences", mend=mend)
    check_phases(settings, part)
    diagnose.check(settings.diagnose, run.family)
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
    labelled: Sequence[Preference],
    settings: Optimize,
    cache: Cache,
    *,
    seed: int,
    scratch: Path,
    journal: Journal,
    label: str,
    watch: Look | None = None,
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
    kept = first(diagnose.learned(labelled, settings.diagnose), settings.preferences)
    wanted = feed.examples(objective, kept, where="params.yaml optimize.objective.name")
    if policy.seeded and "reference" in objective.spec.needs:
        cache.of(feed.items(wanted[0], settings.num_train_epochs - 1)[0])  # the last epoch's draw is there
    cache = Cache(cache)  # ours, to add to
    mismatches = feed.mismatched(wanted) if "mismatch" in objective.spec.needs else {}
    if mismatches:
        cache.update(priced(policy, list(mismatches.values()), scratch / "mismatch.safetensors"))

    def batched(examples: Sequence[Example], epoch: int) -> Any:
        needs, soft = objective.spec.needs, settings.soft_labels
        return feed.batch(policy, examples, needs, cache, mismatches, soft=soft, draw=epoch)

    own: dict[str, Any] = {}  # parameters that the objective has beside the policy's
    if objective.init:
        with torch.no_grad():
            head = objective.init(batched(wanted[:1], 0), **chosen)
        own = {"head": {name: value.requires_grad_() for name, value in head.items()}}

    def loss(examples: Sequence[Example], epoch: int) -> tuple:
        batch = batched(examples, epoch)
        losses, stats = objective.function(batch, **chosen, **own)
        return losses, stats | (diagnose.per_token(batch) if isinstance(batch, Pairs) else {})

    looks: list[Look] = [] if watch is None else [watch]
    if settings.diagnose is not None:
        looks.insert(0, Monitor(policy, labelled, settings.diagnose, seed=seed, scratch=scratch, journal=journal))
    about = {"seed": seed, "journal": journal, "watch": one_by_one(looks), **own}
    return in_phases(policy, wanted, loss, settings, cache, scratch=scratch, label=label, **about)


def first(labelled: Sequence[Preference], count: int | None) -> Sequence[Preference]:
    """The first so many preferences, so that a smaller number is part of a larger one; all where none is given.

    Raises:
        UserError: there are fewer.
    """
    if count is not None and count > len(labelled):
        what = f"{count} preferences are wanted, {len(labelled)} can be learned from"
        mend = "lower it, or label more: generate.prompts"
        raise UserError(what, where="params.yaml optimize.preferences", mend=mend)
    return labelled[:count]


def in_phases(
    policy: Policy,
    wanted: Sequence[Example],
    loss: loop.Loss,
    settings: Optimize,
    cache: Cache,
    *,
    scratch: Path,
    label: str,
    **about: Any,
) -> dict[str, float]:
    """Train phase after phase; a run that was killed goes on in the last one that has a checkpoint.

    Args:
        policy: learns.
        wanted: what is learned from in all phases.
        loss: of examples and an epoch.
        settings: the curriculum and the loop's settings.
        cache: reference log-probs that the loss reads; those of a phase are replaced where the reference moves.
        scratch: each phase has a folder there, the only phase all of it.
        label: name on the progress line.
        about: what else the loop is told.
    """
    turns = phases(wanted, settings)
    several = len(turns) > 1
    homes = [scratch / f"phase-{n + 1}" for n in range(len(turns))] if several else [scratch]
    begun = max((n for n, home in enumerate(homes) if (home / loop.CHECKPOINT).exists()), default=0)
    summary: dict[str, float] = {}
    for n in range(begun, len(turns)):
        if n and settings.moving_reference:
            answers = feed.at_draws(policy, turns[n], settings.num_train_epochs)
            cache.update(priced(policy, answers, homes[n] / "reference.safetensors"))
        summary = loop.train(
            policy,
            turns[n],
            loss,
            settings,
            scratch=homes[n],
            label=f"{label} {n + 1}/{len(turns)}" if several else label,
            size=lambda example: max(item.size for item in feed.items(example)),
            after=sum(loop.length(len(turn), settings) for turn in turns[:n]),
            **about,
        )
        if "watch/stop" in summary:
            break
    return summary


def one_by_one(looks: Sequence[Look]) -> Look | None:
    """All who look, in their order, as one; whoever ends training is the last to look."""

    def look(step: int, last: bool) -> dict[str, float]:
        told: dict[str, float] = {}
        for one in looks:
            told |= one(step, last)
            if "watch/stop" in told:
                break
        return told

    return look if looks else None


def phases(wanted: Sequence[Example], settings: Optimize) -> list[list[Example]]:
    """What is learned from in each phase: all of it in one where there is no curriculum."""
    if settings.curriculum is None:
        return [list(wanted)]
    part, chosen = settings.curriculum.part("curriculum", "optimize.curriculum")
    return [[wanted[i] for i in phase] for phase in part.function(wanted, **chosen)]


def priced(policy: Policy, wanted: Sequence[Item], kept: Path) -> Cache:
    """Log-probs of answers under a policy as it is now, kept where a run that resumes with a later one finds them."""
    if not kept.exists():
        feed.reference(policy, wanted).save(kept, {})
    return Cache.load(kept, {})
