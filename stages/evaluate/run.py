"""Evaluate: every policy of the pipeline against the base model on held-out prompts; report, gate, registry."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from stages import lineage, panel, parts, records, toolbox
from stages.config import Choice, Config, Run
from stages.entry import Job, Stage
from stages.errors import UserError
from stages.evaluate import answers, report
from stages.evaluate.answers import Answers
from stages.evaluate.results import Estimate, Kind, Policy, Results, Reward, Sample
from stages.panel import Panel
from stages.policies import family
from stages.records import Prompt

PROMPTS, MODEL, ENCODER = Path("data/prepare/test.jsonl"), Path("data/prepare/model"), Path("data/prepare/encoder")
SCORER, AUDIT = Path("data/reward"), Path("data/label/audit.json")


class LabelPanel(Panel):
    """The labelling panel out of the node `label`; what else stands there is not for this stage."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Gate(Config):
    """What a policy must show before the alias `champion` moves to it."""

    min_win_rate_lower: Annotated[float, Field(ge=0, le=100)] = 50.0  # percent, lower end of the 95% interval
    max_kl: Annotated[float, Field(gt=0)] = 100.0  # nats an answer
    max_repetition: Annotated[float, Field(ge=0, le=1)] = 0.3


class Evaluate(Config):
    """The node `evaluate`."""

    policy: str  # folder of the policy that the pipeline ends with
    sampler: Choice = Choice(name="temperature")
    base: str = "data/prepare/model"  # what every policy is held against
    independent: Panel  # judges that took no part in labelling
    metrics: dict[str, dict[str, Any]]  # part name -> settings
    gate: Gate = Gate()
    register_as: str = "prefloop"


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    label: LabelPanel
    evaluate: Evaluate


def check(config: Settings) -> None:
    """Every part exists; the independent panel shares nobody with the labelling one."""
    panel.check(config.label, where="params.yaml label")
    panel.check(config.evaluate.independent, where="params.yaml evaluate.independent")
    config.evaluate.sampler.part("sampler", "evaluate.sampler")
    both = {*config.label.rewards, *config.label.judges}
    for name in (*config.evaluate.independent.rewards, *config.evaluate.independent.judges):
        if name in both:
            raise UserError(
                f"'{name}' made labels too",
                where="params.yaml evaluate.independent",
                mend="name a reward or judge that is not in label",
            )
    for name, settings in config.evaluate.metrics.items():
        where = f"params.yaml evaluate.metrics.{name}"
        parts.check(parts.find("metric", name, where=where), settings, where=where)


def run(job: Job[Settings]) -> dict[str, float]:
    """Write report.html with its data, answers.jsonl, gate.json; register the policy."""
    config, label = job.config.evaluate, job.config.label
    prompts = records.read(PROMPTS, Prompt)
    sampler, settings = config.sampler.part("sampler", "evaluate.sampler")
    policies = answers.chain(Path(config.base), Path(config.policy))
    drawn = answers.sample(policies, sampler, settings, prompts, job.config.run, job.scratch)
    needs = {"reward_model", *panel.needs(label), *panel.needs(config.independent, where="params.yaml evaluate")}
    tools = toolbox.load(needs, job.config.run, encoder=ENCODER, model=MODEL, scorer=SCORER)
    base = family.load(job.config.run, Path(config.base))
    everyone = []
    for name, folder in policies:
        told = drawn[name]
        ref = answers.price(base, prompts, told, f"price {name}") if name != "base" else [sum(c.logps) for c in told]
        everyone.append(
            answers.compare(name, folder, prompts, told, drawn["base"], ref, (label, config.independent), tools)
        )
    final = family.load(job.config.run, Path(config.policy))
    held_out = answers.held_out_pairs(prompts, everyone, label.temperature)
    pairs = answers.pair_columns(held_out, base, final, tools)
    numbers = measure(config.metrics, {**answers.columns(everyone[-1], everyone[0]), **pairs})
    numbers["length"] = mean([len(c.text) for c in everyone[-1].candidates])
    reasons = gate(config.gate, numbers)
    results = gather(job, prompts, everyone, numbers, reasons)
    report.write(job.out, results)
    records.write(job.out / "answers.jsonl", [c for a in everyone for c in a.candidates])
    job.journal.table("before_and_after", table(results.samples))
    job.journal.artifact(job.out / "report.html")
    job.journal.register(config.register_as, Path(config.policy), numbers, gate_passed=not reasons)
    print(f"gate {'passed' if not reasons else 'not passed: ' + '; '.join(reasons)}")
    return numbers


def measure(wanted: Mapping[str, dict[str, Any]], columns: Mapping[str, Any]) -> dict[str, float]:
    """Every metric on the columns that its `update` names; `metric` is its main value, `metric/key` the others.

    The win rate is taken of the independent judges' column too.
    """
    numbers: dict[str, float] = {}
    for name, settings in wanted.items():
        found = parts.find("metric", name)
        named = list(inspect.signature(found.function.update).parameters)[1:]  # type: ignore[attr-defined]
        if not all(len(columns.get(key, ())) for key in named):
            continue
        runs = {name: {key: columns[key] for key in named}}
        if name == "win_rate":
            runs["independent_win_rate"] = {"prob": columns["independent"]}
        for label, data in runs.items():
            metric = found.function(**parts.check(found, settings))
            metric.update(**data)
            told = metric.compute()
            numbers[label] = told.pop(name)
            numbers |= {f"{label}/{key}": value for key, value in told.items()}
    return numbers


def gate(limits: Gate, numbers: Mapping[str, float]) -> list[str]:
    """Reasons against the policy; none lets it become the champion."""
    reasons = [] if "win_rate" in numbers else ["nobody on the labelling panel judges the policy's own answers"]
    if (lower := numbers.get("win_rate/lower", 100.0)) <= limits.min_win_rate_lower:
        reasons.append(f"the win rate's lower bound is {lower:.1f}%, not above {limits.min_win_rate_lower:g}%")
    if (kl := numbers.get("kl", 0.0)) > limits.max_kl:
        reasons.append(f"KL is {kl:.1f} nats an answer, above {limits.max_kl:g}")
    if (repeats := numbers.get("diversity/repetition", 0.0)) > limits.max_repetition:
        reasons.append(f"{repeats:.0%} of the 4-grams repeat, above {limits.max_repetition:.0%}")
    return reasons


def gather(
    job: Job[Settings],
    prompts: list[Prompt],
    everyone: Sequence[Answers],
    numbers: dict[str, float],
    reasons: list[str],
) -> Results:
    """All that the report shows."""
    config, base, final = job.config, everyone[0], everyone[-1]
    optimize = json.loads(Path("data/optimize/settings.json").read_text())["optimize"]
    settings = {
        "policy": config.evaluate.policy,
        "objective": optimize["objective"]["name"],
        "seed": config.run.seed,
        "held-out prompts": len(prompts),
        "commit": lineage.git_commit()[:12],
    }
    return Results(
        title="Alignment report",
        settings=settings,
        headline=headline(numbers, base),
        passed=not reasons,
        reasons=reasons,
        policies=[row(a, base, config.evaluate.metrics) for a in everyone],
        kinds=[Kind(kind, len(rates), win_rate(rates)) for kind, rates in by_kind(prompts, final).items()],
        rewards=[
            Reward(
                name,
                mean([c.scores[name] for c in base.candidates if name in c.scores]),
                mean([c.scores[name] for c in final.candidates if name in c.scores]),
                parts.find("reward", name).spec.higher,
            )
            for name in config.label.rewards
            if any(name in c.scores for c in final.candidates)
        ],
        samples=[
            Sample(p.messages[-1].content, p.kind, b.text, f.text, b.scores, f.scores, prob, independent)
            for p, b, f, prob, independent in zip(
                prompts, base.candidates, final.candidates, final.prob, final.independent, strict=True
            )
        ],
        curves=curves(everyone),
        audit=json.loads(AUDIT.read_text()),
    )


def headline(numbers: Mapping[str, float], base: Answers) -> dict[str, Estimate]:
    """Main values with their intervals, and what they were before."""
    found = {
        key: Estimate(value, numbers.get(f"{key}/lower"), numbers.get(f"{key}/upper"))
        for key, value in numbers.items()
        if "/" not in key
    }
    before = measure({"diversity": {}}, answers.columns(base, base))
    renamed = {"length": "drift/length", "entropy": "drift/entropy", "repetition": "diversity/repetition"}
    found |= {key: Estimate(numbers[source]) for key, source in renamed.items() if source in numbers}
    found["base_length"] = Estimate(mean([len(c.text) for c in base.candidates]))
    found["base_entropy"] = Estimate(mean([c.entropy or 0.0 for c in base.candidates]))
    found["base_repetition"] = Estimate(before["diversity/repetition"])
    if "ranking_accuracy/reference_accuracy" in numbers:
        found["base_ranking_accuracy"] = Estimate(numbers["ranking_accuracy/reference_accuracy"])
    return found


def row(policy: Answers, base: Answers, wanted: Mapping[str, dict[str, Any]]) -> Policy:
    """One policy's line in the table over the pipeline."""
    numbers = measure({name: wanted.get(name, {}) for name in ("kl", "diversity")}, answers.columns(policy, base))
    return Policy(
        name=policy.name,
        reward=mean([c.score for c in policy.candidates if c.score is not None]),
        kl=numbers["kl"],
        win_rate=win_rate(policy.prob),
        length=mean([len(c.text) for c in policy.candidates]),
        entropy=mean([c.entropy or 0.0 for c in policy.candidates]),
        repetition=numbers["diversity/repetition"],
    )


def win_rate(prob: Sequence[float]) -> Estimate:
    """Win rate with its interval, in percent."""
    numbers = measure({"win_rate": {}}, {"prob": prob, "independent": prob})
    return Estimate(numbers["win_rate"], numbers["win_rate/lower"], numbers["win_rate/upper"])


def by_kind(prompts: list[Prompt], final: Answers) -> dict[str, list[float]]:
    """P(better than the base model) of each kind of prompt, by name."""
    found: dict[str, list[float]] = {}
    for prompt, prob in zip(prompts, final.prob, strict=True):
        found.setdefault(prompt.kind or "other", []).append(prob)
    return dict(sorted(found.items()))


def curves(everyone: Sequence[Answers]) -> list[dict[str, Any]]:
    """Step metrics of every policy that was trained."""
    rows = []
    for policy in everyone:
        file = policy.folder / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        rows += [{"stage": policy.name, **json.loads(line)} for line in lines]
    return rows


def table(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """The samples for MLflow: completions before and after, side by side, with scores."""
    return [
        {
            "prompt": s.prompt,
            "kind": s.kind,
            "before": s.base,
            "after": s.final,
            "prob": round(s.prob, 4),
            "independent": s.independent,
            **{f"before/{k}": v for k, v in s.base_scores.items()},
            **{f"after/{k}": v for k, v in s.final_scores.items()},
        }
        for s in samples
    ]


def mean(values: Sequence[float]) -> float:
    """Average, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


STAGE = Stage(
    name="evaluate",
    schema=Settings,
    run=run,
    inputs=lambda config: {
        "prompts": PROMPTS,
        "model": MODEL,
        "encoder": ENCODER,
        "scorer": SCORER,
        "audit": AUDIT,
        "policy": Path(config.evaluate.policy),
        "base": Path(config.evaluate.base),
        "parts": Path("data/parts/evaluate.json"),
    },
    output=Path("data/evaluate"),
    check=check,
)
