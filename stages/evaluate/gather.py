"""From answers and numbers to the nouns of the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import lineage
from stages.config import Run
from stages.evaluate import answers
from stages.evaluate.answers import Answers, mean
from stages.evaluate.fronts import Point
from stages.evaluate.measures import measure
from stages.evaluate.results import Estimate, Kind, Policy, Results, Reward, Sample
from stages.panel import Panel, seats
from stages.records import Candidate, Prompt

AUDIT, OPTIMIZE = Path("data/label/audit.json"), Path("data/optimize/settings.json")
Metrics = Mapping[str, dict[str, Any]]


def gather(
    run: Run,
    policy: str,
    panels: tuple[Panel, Panel],
    metrics: Metrics,
    prompts: list[Prompt],
    everyone: Sequence[Answers],
    numbers: Mapping[str, float],
    reasons: list[str],
    *,
    front: Sequence[Point] = (),
    front_of: Sequence[str] = (),
) -> Results:
    """All that the report shows.

    Args:
        run: what the whole run shares.
        policy: folder of the policy that the pipeline ends with.
        panels: the labelling panel and the independent one.
        metrics: settings by name.
        prompts: the held-out ones.
        everyone: answers of all policies, base first, final last.
        numbers: what the metrics said.
        reasons: the gate's.
        front: means of two rewards, of the base and the final policy, in each direction.
        front_of: which two.
    """
    base, final = everyone[0], everyone[-1]
    optimize = json.loads(OPTIMIZE.read_text())["optimize"]
    settings = {
        "policy": policy,
        "objective": optimize.get("objective", {}).get("name", "none"),
        "seed": run.seed,
        "held-out prompts": len(prompts),
        "commit": lineage.git_commit()[:12],
    }
    return Results(
        title="Alignment report",
        settings=settings,
        headline=headline(run.family, numbers, base),
        passed=not reasons,
        reasons=reasons,
        policies=[row(run.family, one, base, metrics) for one in everyone],
        kinds=kinds(run.family, prompts, base, final),
        rewards=rewards(panels, numbers, base, final),
        samples=samples(prompts, base, final),
        curves=curves(everyone),
        audit=json.loads(AUDIT.read_text()),
        family=run.family,
        front=front,
        front_of=front_of,
    )


def headline(family: str, numbers: Mapping[str, float], base: Answers) -> dict[str, Estimate]:
    """Main values with their intervals, and what they were before."""
    found = {
        key: Estimate(value, numbers.get(f"{key}/lower"), numbers.get(f"{key}/upper"))
        for key, value in numbers.items()
        if "/" not in key
    }
    renamed = {"base_ranking_accuracy": "ranking_accuracy/reference_accuracy"}
    if family == "image":
        renamed |= {"base_image_diversity": "image_diversity/base", "diversity_within": "image_diversity/within"}
        renamed |= {"base_diversity_within": "image_diversity/base_within"}
    else:
        renamed |= {"length": "drift/length", "entropy": "drift/entropy", "repetition": "diversity/repetition"}
        found["base_length"] = Estimate(mean([len(c.text) for c in base.candidates]))
        found["base_entropy"] = Estimate(mean([c.entropy or 0.0 for c in base.candidates]))
        before = measure({"diversity": {}}, answers.columns(base, base))
        found["base_repetition"] = Estimate(before["diversity/repetition"])
    return found | {key: Estimate(numbers[source]) for key, source in renamed.items() if source in numbers}


def row(family: str, policy: Answers, base: Answers, wanted: Metrics) -> Policy:
    """One policy's line in the table over the pipeline."""
    names = ("surrogate_kl", "image_diversity") if family == "image" else ("kl", "diversity")
    numbers = measure({name: wanted.get(name, {}) for name in names}, answers.columns(policy, base))
    if family == "image":
        own = {"kl": numbers["surrogate_kl"], "diversity": numbers["image_diversity"]}
    else:
        own = {
            "kl": numbers["kl"],
            "length": mean([len(c.text) for c in policy.candidates]),
            "entropy": mean([c.entropy or 0.0 for c in policy.candidates]),
            "repetition": numbers["diversity/repetition"],
        }
    return Policy(name=policy.name, reward=reward(policy.every), win_rate=win_rate(policy.prob), **own)


def reward(candidates: Sequence[Candidate]) -> float:
    """Mean mixed reward of those that have one."""
    return mean([c.score for c in candidates if c.score is not None])


def win_rate(prob: Sequence[float]) -> Estimate:
    """Win rate with its interval, in percent."""
    numbers = measure({"win_rate": {}}, {"prob": prob, "independent": prob})
    return Estimate(numbers["win_rate"], numbers["win_rate/lower"], numbers["win_rate/upper"])


def kinds(family: str, prompts: list[Prompt], base: Answers, final: Answers) -> list[Kind]:
    """Win rate on each kind of prompt, by name; of images the mixed reward before and after too."""
    found = []
    for name in sorted({prompt.kind or "other" for prompt in prompts}):
        at = [i for i, prompt in enumerate(prompts) if (prompt.kind or "other") == name]
        ids = {prompts[i].id for i in at}
        told = [reward([c for c in one.every if c.prompt in ids]) for one in (base, final)]
        found.append(
            Kind(name, len(at), win_rate([final.prob[i] for i in at]), *(told if family == "image" else (None, None)))
        )
    return found


def rewards(panels: tuple[Panel, Panel], numbers: Mapping[str, float], base: Answers, final: Answers) -> list[Reward]:
    """Every labelling reward before and after, and the independent ones where the metric `score` was taken of them."""
    found = []
    for panel in panels:
        for seat in seats(panel, "reward"):
            at = f"score/{seat.key}"
            sides = [[c.scores[seat.key] for c in one.every if seat.key in c.scores] for one in (base, final)]
            if sides[1]:
                before, after = map(mean, sides)
            elif at in numbers:
                before, after = numbers[f"{at}/base"], numbers[at]
            else:
                continue
            ends = [numbers.get(f"{at}/difference{end}") for end in ("", "/lower", "/upper")]
            change = None if ends[0] is None else Estimate(ends[0], *ends[1:])
            higher = seat.part.spec.higher
            found.append(Reward(seat.key, before, after, higher, panel is not panels[0], change))
    return found


def samples(prompts: list[Prompt], base: Answers, final: Answers) -> list[Sample]:
    """Every prompt with what the base and the final policy answered."""
    found = []
    for i, prompt in enumerate(prompts):
        before, after = base.candidates[i], final.candidates[i]
        pictures = [[c.image for c in one.every if c.prompt == prompt.id and c.image] for one in (base, final)]
        asked, first, last = (prompt.shown(text) for text in (prompt.messages[-1].content, before.text, after.text))
        about = asked, prompt.kind, first, last, before.scores, after.scores
        score = after.score if after.image else None
        credit = [] if prompt.checks.get("withhold") else token_credit(final, i)
        found.append(Sample(*about, final.prob[i], final.independent[i], pictures[0], pictures[1], score, credit))
    return found


def token_credit(policy: Answers, i: int) -> list[tuple[str, float]]:
    """The tokens of an answer with their log-ratios to the base model, in nats; none of what has no tokens."""
    columns = policy.pieces[i], policy.logp[i], policy.ref_logp[i]
    return [(piece, own - ref) for piece, own, ref in zip(*columns)]  # a long answer is priced to the length limit


def curves(everyone: Sequence[Answers]) -> list[dict[str, Any]]:
    """Step metrics of every policy that was trained."""
    rows = []
    for policy in everyone:
        file = policy.folder / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        rows += [{"stage": policy.name, **json.loads(line)} for line in lines]
    return rows


def table(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The samples for MLflow: completions before and after, side by side, with scores; pictures are logged apart."""
    return [
        {
            "prompt": s.prompt,
            "kind": s.kind,
            **({} if s.final_images or s.base_images else {"before": s.base, "after": s.final}),
            "prob": round(s.prob, 4),
            "independent": s.independent,
            **{f"before/{k}": v for k, v in s.base_scores.items()},
            **{f"after/{k}": v for k, v in s.final_scores.items()},
        }
        for s in samples
    ]
