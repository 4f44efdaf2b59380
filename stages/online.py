"""Online optimization: every step samples the policy, scores what it drew, and learns from that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stages import feed, loop, panel
from stages.average import Average
from stages.config import Choice, Run
from stages.errors import UserError
from stages.panel import Panel, Tools
from stages.parts import Part
from stages.pathwise import differentiable
from stages.policies.family import check_sampling
from stages.records import Pair, Prompt
from stages.updates import updates

if TYPE_CHECKING:
    from stages.cached import Cache
    from stages.journal import Journal
    from stages.learn import Optimize
    from stages.policies.family import Policy
    from stages.watch import Watcher


class Online(Panel):
    """The node `optimize.online`: who scores the samples, and how many there are; TRL's names.

    `per_device_train_batch_size` of `optimize` counts prompts; pairs, where the objective learns from those as well.
    """

    num_generations: Annotated[int, Field(ge=2)] = 8  # K samples of a prompt
    num_iterations: Annotated[int, Field(ge=1)] = 1  # updates on the same samples
    advantage: Choice = Choice(name="group")
    ties: Literal["keep", "drop"] = "keep"  # drop: a prompt whose samples all score alike leaves the step and its mean
    mask_truncated_completions: bool = False  # a sample that was cut off has its reward, and no step is learned from
    ema_beta: Annotated[float, Field(ge=0)] = 0.0  # pull towards a moving average of the policy, see stages/average.py
    sampler: dict[str, Any] = Field(default_factory=dict)  # settings of the policy's own sampling


def check(objective: Part, settings: Online | None, family: str, *, where: str) -> None:
    """The node `online` is there for an objective that learns online, and everybody in it exists.

    Raises:
        UserError: naming what is missing or wrong.
    """
    hybrid = objective.feedback == "Hybrid"
    if settings is None:
        node = "{num_generations: 4}` beside it" if hybrid else "{rewards: ...}` beside it: who scores the samples"
        raise UserError(f"objective '{objective.name}' learns online", where=where, mend=f"add `online: {node}")
    where = f"{where}.online"
    check_sampling(settings.sampler, family, where=f"{where}.sampler")
    if hybrid:
        rest = set(Online.model_fields) - {"num_generations", "sampler"}
        untouched(settings, rest, f"objective '{objective.name}' samples anew each step and nobody scores it", where)
        return
    seats = panel.check(settings, where=where, family=family)
    settings.advantage.part("advantage", f"{where.removeprefix('params.yaml ')}.advantage")
    if settings.ema_beta and "kl" not in objective.spec.needs:
        what = f"objective '{objective.name}' measures no divergence, and none from a moving average"
        raise UserError(what, where=f"{where}.ema_beta", mend="remove it, or choose awm or flow_grpo")
    if objective.feedback == "Pathwise":
        what = f"objective '{objective.name}' samples anew for every update, as run.policy says"
        untouched(settings, {"num_iterations", "sampler", "ties", "mask_truncated_completions"}, what, where)
        for seat in seats:
            if seat.weight and differentiable(seat.part) is None:
                what = f"{seat.part.kind} '{seat.part.name}' has no gradient with respect to the image"
                raise UserError(what, where=seat.where, mend="choose one whose file defines `pixels`")


def untouched(settings: Online, names: set[str], why: str, where: str) -> None:
    """None of these settings is set: they would do nothing.

    Raises:
        UserError: one is.
    """
    for name in sorted(names):
        if getattr(settings, name) != Online.model_fields[name].get_default(call_default_factory=True):
            raise UserError(why, where=f"{where}.{name}", mend="remove it")


def compares(objective: Part, chosen: dict[str, Any]) -> bool:
    """Whether samples are priced under the reference too."""
    needs = set(objective.needs(chosen))
    return bool({"reference", "kl"} & needs) and (objective.feedback != "Hybrid" or "samples" in needs)


def learn(
    policy: Policy,
    reference: Policy | None,
    prompts: Sequence[Prompt] | Sequence[Pair],
    settings: Optimize,
    tools: Tools,
    *,
    run: Run,
    scratch: Path,
    journal: Journal,
    watch: Watcher | None = None,
    cache: Cache | None = None,
) -> dict[str, float]:
    """Train a policy in place on its own samples.

    Args:
        policy: samples and learns.
        reference: what objectives that need it stay close to.
        prompts: what it answers, a batch of them a step; pairs, for an objective that learns from those as well.
        settings: the objective, the loop's settings, and `online`.
        tools: what the panel needs.
        run: its seed names the samples.
        scratch: where checkpoints lie.
        journal: where metrics go.
        watch: called after each step.
        cache: reference log-probs of the pairs.
    """
    assert settings.online is not None
    behind = Average(policy) if settings.online.ema_beta else None
    learner = updates(policy, reference, settings, tools, run.seed, behind, cache)
    return loop.train(
        behind or policy,
        prompts,
        learner.loss,
        settings,
        seed=run.seed,
        scratch=scratch,
        journal=journal,
        size=lambda one: max(item.size for item in feed.items(one)) if isinstance(one, Pair) else 0,
        label="online",
        repeats=settings.online.num_iterations,
        begin=learner.begin,
        watch=behind.watched(watch) if behind else watch,
    )
