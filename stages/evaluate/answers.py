"""Answers of every policy to the held-out prompts, priced, scored and compared with the base model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages import feed, labelling, rollout
from stages.config import Run
from stages.feed import Example
from stages.pairs import completion
from stages.panel import Panel, Tools
from stages.parts import Part
from stages.policies import family
from stages.policies.family import Policy
from stages.records import Candidate, Pair, Prompt, Single

Chosen = tuple[Part, dict[str, Any]]  # a sampler and its settings


@dataclass(frozen=True)
class Drawn:
    """What one policy answered, and what it thinks of it."""

    every: list[Candidate]  # all answers, ordered by prompt
    logp: list[list[float]]  # of the steps of each prompt's first answer under the policy itself: see `price`
    pieces: list[list[str]]  # the text of each token of these answers, none of what has no tokens
    own: list[Candidate]  # an answer to each prompt that KL is measured on; the first ones where nobody draws others


@dataclass(frozen=True)
class Priced:
    """Log-probs `[n]` of answers that a policy gave, under it and under the base model, and their steps."""

    logp: list[float]
    ref_logp: list[float]
    steps: list[int]


@dataclass(frozen=True)
class Answers:
    """One policy's answers: the first one to each prompt is compared, all of them are scored."""

    name: str
    folder: Path
    every: list[Candidate]  # ordered by prompt, scored by the labelling panel
    candidates: list[Candidate]  # the first to each prompt, in the order of the prompts
    logp: list[list[float]]  # of the steps of each of these under the policy: see `price`
    ref_logp: list[list[float]]  # the same under the base model
    pieces: list[list[str]]  # the text of each of their tokens
    kl: Priced  # answers that KL is measured on
    prob: list[float]  # P(better than the base model's) under the labelling panel
    independent: list[float]  # the same under the independent panel


def chain(base: Path, policy: Path) -> list[tuple[str, Path]]:
    """Names and folders of all policies that led to one, the one that all are held against first."""
    return [("base", base), *((folder.name, folder) for folder in family.ancestors(policy) if folder != base)]


def sample(
    policies: Sequence[tuple[str, Path]],
    sampler: Chosen,
    own: Chosen | None,
    prompts: list[Prompt],
    run: Run,
    scratch: Path,
    *,
    k: int,
    draws: int,
) -> dict[str, Drawn]:
    """K answers of every policy to every prompt, with what it thinks of the first; one policy in memory at a time.

    Args:
        policies: names and folders, the base model first.
        sampler: draws the answers.
        own: draws one answer more to each prompt, that KL is measured on; nobody does where it is None.
        prompts: the held-out ones.
        run: what the whole run shares.
        scratch: where answers are kept as they come.
        k: answers a prompt.
        draws: of a seeded policy, see `priced`.
    """
    drawn: dict[str, Drawn] = {}
    for name, folder in policies:
        policy = family.load(run, folder)
        every = draw(policy, sampler, prompts, k, run.seed, scratch / name, f"answers of {name}")
        told = firsts(every)
        other = told  # the base model's KL is 0 on any
        if own and drawn:
            other = draw(policy, own, prompts, 1, run.seed, scratch / f"{name}-kl", f"{name} for KL")
        logp = price(policy, prompts, told, draws, f"price {name} itself") if policy.seeded else logps(told)
        text = [policy.pieces(c.tokens) if c.tokens else [] for c in told]  # type: ignore[attr-defined]
        drawn[name] = Drawn(every, logp, text, other)
    return drawn


def draw(
    policy: Policy, chosen: Chosen, prompts: list[Prompt], k: int, seed: int, scratch: Path, label: str
) -> list[Candidate]:
    """K answers of a policy to every prompt by a sampler."""
    function = partial(chosen[0].function, policy, k=k, seed=seed, **chosen[1])
    return rollout.sample(function, prompts, k, scratch, label=label, chunk=policy.chunk)


def logps(candidates: Sequence[Candidate]) -> list[list[float]]:
    """Log-probs of the steps of answers, as the policy that gave them wrote them down."""
    return [list(candidate.logps) for candidate in candidates]


def price_drawn(
    base: Policy | None, prompts: Sequence[Prompt], drawn: Drawn, draws: int, label: str
) -> tuple[list[list[float]], Priced]:
    """Log-probs of the steps of a policy's first answers under the base model, and all that KL needs.

    Args:
        base: the base model; None where the answers are its own.
        prompts: the held-out ones.
        drawn: a policy's answers.
        draws: of a seeded policy, see `priced`.
        label: name on the progress line.
    """
    told = firsts(drawn.every)
    ref = price(base, prompts, told, draws, label) if base else drawn.logp
    other, own_ref = drawn.logp, ref
    if base and drawn.own != told:
        other, own_ref = logps(drawn.own), price(base, prompts, drawn.own, draws, f"{label} for KL")
    steps = [max(1, len(c.tokens)) for c in drawn.own]
    return ref, Priced([sum(steps) for steps in other], [sum(steps) for steps in own_ref], steps)


def firsts(every: Sequence[Candidate]) -> list[Candidate]:
    """The first answer to each prompt."""
    found: dict[str, Candidate] = {}
    for candidate in every:
        found.setdefault(candidate.prompt, candidate)
    return list(found.values())


def price(
    policy: Policy, prompts: Sequence[Prompt], candidates: Sequence[Candidate], draws: int, label: str
) -> list[list[float]]:
    """Log-probs of the steps of each answer, end included, under a policy, in nats; none of one without a token.

    Of a seeded policy it is one number, a surrogate: see `priced`.
    """
    kept = [(p, c) for p, c in zip(prompts, candidates, strict=True) if c.tokens or not c.blank]
    wanted = [Single(id=c.id, messages=p.messages, completion=completion(c)) for p, c in kept]
    found = priced(policy, wanted, draws, label)
    return [found[c.id].tolist() if c.id in found else [] for c in candidates]


def priced(policy: Policy, wanted: Sequence[Example], draws: int, label: str) -> dict[str, Tensor]:
    """Log-probs `[t]` of every completion of some examples, by the item's id.

    A seeded policy has one value a completion, the mean over its steps and over draws 0 .. draws - 1: a surrogate in
    the unit of one step. The draws are named by the example, so that two policies, and both sides of a pair, are
    priced at the same noise.
    """
    if not policy.seeded:
        return feed.reference(policy, [item for example in wanted for item in feed.items(example)], label=label)
    rows = [row for example in wanted for row in zip(*(feed.items(example, draw) for draw in range(draws)))]
    found = feed.reference(policy, [item for row in rows for item in row], label=label)
    return {row[0].id: torch.stack([found[item.id].mean() for item in row]).mean(0, keepdim=True) for row in rows}


def compare(
    name: str,
    folder: Path,
    prompts: list[Prompt],
    drawn: Drawn,
    base: Drawn,
    told: tuple[list[list[float]], Priced],
    panels: tuple[Panel, Panel],
    tools: Tools,
) -> Answers:
    """Score a policy's answers and hold the first to each prompt against the base model's.

    Args:
        name: of the policy.
        folder: where it lies.
        prompts: the held-out prompts.
        drawn: its answers.
        base: the base model's.
        told: what the base model thinks of them, see `price_drawn`.
        panels: the labelling panel and the independent one.
        tools: what both need.
    """
    even = [0.5] * len(prompts)  # the base model against itself, without asking the judges
    first, other = firsts(drawn.every), firsts(base.every)
    probs = [even if drawn is base else labelling.compare(p, prompts, first, other, tools) for p in panels]
    scored = labelling.score(panels[0], labelling.align(prompts, drawn.every), drawn.every, tools)
    return Answers(name, folder, scored, firsts(scored), drawn.logp, told[0], drawn.pieces, told[1], *probs)


def columns(final: Answers, base: Answers) -> dict[str, Any]:
    """The columns of the evaluation table: one row a prompt, of images one an answer; without a judge, no `prob`."""
    judged = any(c.score is not None for c in final.candidates)
    return {
        "prob": final.prob if judged else [],
        "independent": final.independent,
        "length": [len(c.text) for c in final.candidates],
        "base_length": [len(c.text) for c in base.candidates],
        "text": [c.text for c in final.candidates],
        "base_text": [c.text for c in base.candidates],
        "logp": final.kl.logp,
        "ref_logp": final.kl.ref_logp,
        "steps": final.kl.steps,
        "entropy": [c.entropy or 0.0 for c in final.candidates],
        "image": [c.image for c in final.every],
        "base_image": [c.image for c in base.every],
        "prompt": [c.prompt for c in final.every],
    }


def scores(
    final: Answers, base: Answers, prompts: list[Prompt], independent: Panel, tools: Tools
) -> dict[str, dict[str, list[float]]]:
    """`score` and `base_score` by reward of both panels: means over each prompt's answers, where both have any."""
    rewards = independent.model_copy(update={"judges": {}})  # a judge compares, it has no score of its own
    told: dict[str, dict[str, dict[str, list[float]]]] = {}  # reward, side, prompt
    for side, policy in (("score", final), ("base_score", base)):
        for one in labelling.score(rewards, labelling.align(prompts, policy.every), policy.every, tools):
            for reward, value in one.scores.items():
                told.setdefault(reward, {"score": {}, "base_score": {}})[side].setdefault(one.prompt, []).append(value)
    found = {}
    for reward, sides in told.items():
        both = [p.id for p in prompts if all(p.id in side for side in sides.values())]
        found[reward] = {name: [mean(side[i]) for i in both] for name, side in sides.items()}
    return found


def mean(values: Sequence[float]) -> float:
    """Average, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def held_out_pairs(prompts: list[Prompt], everyone: Sequence[Answers], temperature: float) -> list[Pair]:
    """One labelled pair of each held-out prompt: what came with it, else the best- and the worst-scored answer of all.

    A prompt whose answers tie makes no pair. Where policies are priced by their trajectories, an image that came
    without one is left out.
    """
    pairs = []
    for i, prompt in enumerate(prompts):
        answered = [completion(a.candidates[i]) for a in everyone if not a.candidates[i].blank]
        traced = any(c.latents for c in answered)
        given = [c for c in prompt.given if c.score is not None and (c.latents or not traced)]
        ranked = sorted(given or answered, key=lambda c: c.score or 0.0)
        margin = (ranked[-1].score or 0.0) - (ranked[0].score or 0.0) if ranked else 0.0
        if margin > 0:
            prob = labelling.sigmoid(margin / temperature)
            pairs.append(Pair(id=prompt.id, messages=prompt.messages, chosen=ranked[-1], rejected=ranked[0], prob=prob))
    return pairs


def pair_columns(pairs: Sequence[Pair], base: Policy, policy: Policy, tools: Tools, draws: int) -> dict[str, Any]:
    """The columns that hold one row a held-out pair: log-probs under both policies, and what the reward model says."""
    now, ref = priced(policy, pairs, draws, "price pairs"), priced(base, pairs, draws, "by the base")
    rows: dict[str, Any] = {"pair_prob": [pair.prob for pair in pairs]}
    for side in ("chosen", "rejected"):
        ids = [f"{pair.id}:{side}" for pair in pairs]
        rows[f"{side}_logp"] = [float(now[name].sum()) for name in ids]
        rows[f"{side}_ref"] = [float(ref[name].sum()) for name in ids]
        rows[f"{side}_steps"] = [len(now[name]) for name in ids]
    if tools.scorer is not None and not tools.scorer.outputs and pairs:
        with torch.no_grad():
            gaps = [tools.scorer.score(feed.items(pair)) for pair in pairs]
        rows["predicted"] = [float(torch.sigmoid(gap[0] - gap[1])) for gap in gaps]
    return rows
