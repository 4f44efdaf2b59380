"""Answers of every policy to the held-out prompts, priced, scored and compared with the base model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stages import feed, labelling, rollout
from stages.batches import Item
from stages.config import Run
from stages.panel import Panel, Tools
from stages.parts import Part
from stages.policies import family
from stages.policies.family import Policy
from stages.records import Candidate, Pair, Prompt


@dataclass(frozen=True)
class Answers:
    """One policy's answer to each prompt."""

    name: str
    folder: Path
    candidates: list[Candidate]  # scored by the labelling panel
    ref_logp: list[float]  # log-prob of each answer under the base model, nats
    prob: list[float]  # P(better than the base model's) under the labelling panel
    independent: list[float]  # the same under the independent panel


def chain(base: Path, policy: Path) -> list[tuple[str, Path]]:
    """Names and folders of all policies that led to one, the one that all are held against first."""
    return [("base", base), *((folder.name, folder) for folder in family.ancestors(policy) if folder != base)]


def sample(
    policies: Sequence[tuple[str, Path]],
    sampler: Part,
    settings: dict[str, Any],
    prompts: list[Prompt],
    run: Run,
    scratch: Path,
) -> dict[str, list[Candidate]]:
    """One answer of every policy to every prompt; one policy in memory at a time."""
    drawn = {}
    for name, folder in policies:
        policy = family.load(run, folder)
        draw = partial(sampler.function, policy, k=1, seed=run.seed, **settings)
        drawn[name] = rollout.sample(draw, prompts, 1, scratch / name, label=f"answers of {name}")
    return drawn


def price(policy: Policy, prompts: Sequence[Prompt], candidates: Sequence[Candidate], label: str) -> list[float]:
    """Log-prob of each answer, end included, under a policy, in nats; 0 for an answer without a token."""
    kept = [(p, c) for p, c in zip(prompts, candidates, strict=True) if c.tokens or not c.blank]
    items = [Item(c.id, p.messages, labelling.completion(c)) for p, c in kept]
    found = feed.reference(policy, items, label=label)
    return [float(found[c.id].sum()) if c.id in found else 0.0 for c in candidates]


def compare(
    name: str,
    folder: Path,
    prompts: list[Prompt],
    candidates: list[Candidate],
    base: list[Candidate],
    ref_logp: list[float],
    panels: tuple[Panel, Panel],
    tools: Tools,
) -> Answers:
    """Score a policy's answers and hold them against the base model's.

    Args:
        name: of the policy.
        folder: where it lies.
        prompts: the held-out prompts.
        candidates: its answers, in their order.
        base: the base model's answers.
        ref_logp: log-prob of its answers under the base model.
        panels: the labelling panel and the independent one.
        tools: what both need.
    """
    even = [0.5] * len(prompts)  # the base model against itself, without asking the judges
    probs = [even if candidates is base else labelling.compare(p, prompts, candidates, base, tools) for p in panels]
    return Answers(
        name=name,
        folder=folder,
        candidates=labelling.score(panels[0], prompts, candidates, tools),
        ref_logp=ref_logp,
        prob=probs[0],
        independent=probs[1],
    )


def columns(final: Answers, base: Answers) -> dict[str, Any]:
    """The columns of the evaluation table that hold one row a prompt; without a judge of them, no `prob`."""
    judged = any(c.score is not None for c in final.candidates)
    return {
        "prob": final.prob if judged else [],
        "independent": final.independent,
        "length": [len(c.text) for c in final.candidates],
        "base_length": [len(c.text) for c in base.candidates],
        "text": [c.text for c in final.candidates],
        "base_text": [c.text for c in base.candidates],
        "logp": [sum(c.logps) for c in final.candidates],
        "ref_logp": final.ref_logp,
        "steps": [max(1, len(c.tokens)) for c in final.candidates],
        "entropy": [c.entropy or 0.0 for c in final.candidates],
    }


def held_out_pairs(prompts: list[Prompt], everyone: Sequence[Answers], temperature: float) -> list[Pair]:
    """One labelled pair of each held-out prompt: what came with it, else the best- and the worst-scored answer of all.

    A prompt whose answers tie makes no pair.
    """
    pairs = []
    for i, prompt in enumerate(prompts):
        given = [c for c in prompt.given if c.score is not None]
        sampled = [labelling.completion(a.candidates[i]) for a in everyone if not a.candidates[i].blank]
        ranked = sorted(given or sampled, key=lambda c: c.score or 0.0)
        margin = (ranked[-1].score or 0.0) - (ranked[0].score or 0.0) if ranked else 0.0
        if margin > 0:
            prob = labelling.sigmoid(margin / temperature)
            pairs.append(Pair(id=prompt.id, messages=prompt.messages, chosen=ranked[-1], rejected=ranked[0], prob=prob))
    return pairs


def pair_columns(pairs: Sequence[Pair], base: Policy, policy: Policy, tools: Tools) -> dict[str, Any]:
    """The columns that hold one row a held-out pair: log-probs under both policies, and what the reward model says."""
    items = [item for pair in pairs for item in feed.items(pair)]
    now, ref = feed.reference(policy, items, label="price pairs"), feed.reference(base, items, label="by the base")
    rows: dict[str, Any] = {"pair_prob": [pair.prob for pair in pairs]}
    for side in ("chosen", "rejected"):
        ids = [f"{pair.id}:{side}" for pair in pairs]
        rows[f"{side}_logp"] = [float(now[name].sum()) for name in ids]
        rows[f"{side}_ref"] = [float(ref[name].sum()) for name in ids]
        rows[f"{side}_steps"] = [len(now[name]) for name in ids]
    if tools.scorer is not None and pairs:
        with torch.no_grad():
            gaps = [tools.scorer.score(feed.items(pair)) for pair in pairs]
        rows["predicted"] = [float(torch.sigmoid(gap[0] - gap[1])) for gap in gaps]
    return rows
