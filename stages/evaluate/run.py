"""Evaluate: every policy of the pipeline against the base model on held-out prompts; report, gate, registry."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from stages import declared, panel, parts, records, toolbox
from stages.config import Choice, Config, Run
from stages.entry import Job, Stage
from stages.errors import UserError, nearest
from stages.evaluate import answers, fronts, gather, measures, pictures, report, safety
from stages.evaluate.measures import Gate
from stages.panel import Panel
from stages.policies import family
from stages.records import Prompt

PROMPTS, MODEL, ENCODER = Path("data/prepare/test.jsonl"), Path("data/prepare/model"), Path("data/prepare/encoder")
SCORER = Path("data/reward")


class LabelPanel(Panel):
    """The labelling panel out of the node `label`; what else stands there is not for this stage."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Evaluate(Config):
    """The node `evaluate`."""

    policy: str  # folder of the policy that the pipeline ends with, or of one whose gate did not let it pass
    sampler: Choice = Choice(name="temperature")
    kl_sampler: Choice | None = None  # draws other answers, that KL is measured on: the policy's own, as it is
    base: str = "data/prepare/model"  # what every policy is held against
    independent: Panel  # judges that took no part in labelling
    candidates: Annotated[int, Field(ge=1)] = 1  # answers a prompt: the first is compared, all are scored
    front: tuple[str, str] | None = None  # keys of two labelling rewards that pull apart: their front is drawn
    draws: Annotated[int, Field(ge=1)] = 8  # image policies: seeded draws that price each answer
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
    panel.check(config.label, where="params.yaml label", family=config.run.family)
    panel.check(config.evaluate.independent, where="params.yaml evaluate.independent", family=config.run.family)
    for key, chosen in (("sampler", config.evaluate.sampler), ("kl_sampler", config.evaluate.kl_sampler)):
        if chosen is not None:
            sampler, _ = chosen.part("sampler", f"evaluate.{key}")
            parts.fits(sampler, config.run.family, where=f"params.yaml evaluate.{key}.name")
            if "scores" in sampler.spec.needs:
                what = f"sampler '{sampler.name}' chooses by the scores that answers are then judged by"
                raise UserError(what, where=f"params.yaml evaluate.{key}.name", mend="generate by it, evaluate another")
    panel.apart(config.label, config.evaluate.independent, where="params.yaml evaluate.independent")
    for key in config.evaluate.front or ():
        if key not in config.label.rewards:
            mend = nearest(key, list(config.label.rewards))
            raise UserError(f"'{key}' is no reward of label", where="params.yaml evaluate.front", mend=mend)
    measures.check(config.evaluate.metrics, config.run.family)


def run(job: Job[Settings]) -> dict[str, float]:
    """Write report.html with its data, answers.jsonl, gate.json; register the policy."""
    config, label = job.config.evaluate, job.config.label
    prompts = records.read(PROMPTS, Prompt)
    sampler = config.sampler.part("sampler", "evaluate.sampler")
    own = config.kl_sampler.part("sampler", "evaluate.kl_sampler") if config.kl_sampler else None
    policy = family.passed(Path(config.policy))  # what a round's gate held back is not what the pipeline ends with
    policies = answers.chain(Path(config.base), policy)
    drawn = answers.sample(
        policies, sampler, own, prompts, job.config.run, job.scratch, k=config.candidates, draws=config.draws
    )
    needs = panel.needs(label) | panel.needs(config.independent, where="params.yaml evaluate")
    needs |= {"reward_model"} if "calibration" in config.metrics else set()
    tools = toolbox.load(needs, job.config.run, encoder=ENCODER, model=MODEL, scorer=SCORER)
    base = family.load(job.config.run, Path(config.base))
    panels = (label, config.independent)
    everyone = []
    for name, folder in policies:
        reference = base if name != "base" else None
        told = answers.price_drawn(reference, prompts, drawn[name], config.draws, f"price {name}")
        everyone.append(answers.compare(name, folder, prompts, drawn[name], drawn["base"], told, panels, tools))
    final = family.load(job.config.run, policy)
    held_out = answers.held_out_pairs(prompts, everyone, label.temperature)
    columns = answers.columns(everyone[-1], everyone[0])
    columns |= answers.pair_columns(held_out, base, final, tools, config.draws)
    columns |= safety.columns(prompts, everyone[-1].every, everyone[0].every)
    front: list[fronts.Point] = []
    if config.front:
        columns |= fronts.columns(prompts, everyone[-1].every, everyone[0].every, config.front, declared.of(label))
        front = [p for side, name in (("base_", "base"), ("", "final")) for p in fronts.points(columns, side, name)]
    if "score" in config.metrics:
        columns["scores"] = answers.scores(everyone[-1], everyone[0], prompts, config.independent, tools)
    numbers = measures.measure(config.metrics, columns)
    if job.config.run.family == "text":
        numbers["length"] = answers.mean(columns["length"])
    reasons = measures.gate(config.gate, numbers)
    about = job.config.run, str(policy), panels, config.metrics, prompts, everyone, numbers, reasons
    results = gather.gather(*about, front=front, front_of=config.front or ())
    report.write(job.out, results)
    every = safety.withheld(prompts, [c for a in everyone for c in a.every])
    records.write(job.out / "answers.jsonl", [c.model_copy(update={"latents": ""}) for c in every])
    job.journal.table("before_and_after", gather.table(results.samples))
    job.journal.artifact(job.out / "report.html")
    for sheet in pictures.sheets(job.out, results.samples):
        job.journal.artifact(sheet, under="images")
    job.journal.register(config.register_as, policy, numbers, gate_passed=not reasons)
    print(f"gate {'passed' if not reasons else 'not passed: ' + '; '.join(reasons)}")
    return numbers


STAGE = Stage(
    name="evaluate",
    schema=Settings,
    run=run,
    inputs=lambda config: {
        "prompts": PROMPTS,
        "model": MODEL,
        "encoder": ENCODER,
        "scorer": SCORER,
        "audit": gather.AUDIT,
        "policy": Path(config.evaluate.policy),
        "base": Path(config.evaluate.base),
        "parts": Path("data/parts/evaluate.json"),
    },
    output=Path("data/evaluate"),
    check=check,
)
