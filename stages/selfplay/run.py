"""Selfplay: one round: generate, label, optimize, gate. `python -m stages.selfplay r1`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stages import feed, files, labelling, learn, panel, parts, preferences, records, rollout, toolbox
from stages.cached import Cache
from stages.config import Choice, Config, Run
from stages.entry import Job, Stage
from stages.errors import UserError, nearest
from stages.learn import Optimize
from stages.pairs import completion
from stages.panel import Panel, Tools
from stages.policies import family
from stages.preferences import Preference
from stages.records import Candidate, Pair, Prompt
from stages.selfplay.gate import Gate, decide

PROMPTS, MODEL, ENCODER = Path("data/prepare/train.jsonl"), Path("data/prepare/model"), Path("data/prepare/encoder")
SCORER, LABELLED = Path("data/reward"), Path("data/label/candidates.jsonl")
WHERE = "params.yaml selfplay"


class Round(Config):
    """An entry of `selfplay.rounds`."""

    previous: str  # folder of the policy that the round starts from
    skip: Annotated[int, Field(ge=0)] = 0  # training prompts before the round's own
    winners: Literal["labelled", "given"] = "labelled"  # given: what came with a prompt wins, and nobody labels (SPIN)
    reference: Literal["previous", "opponent"] = "previous"  # whom the round stays close to


class Selfplay(Panel):
    """The node `selfplay`: who labels in the rounds, and how a round samples. It learns as `optimize` says."""

    rounds: dict[str, Round] = Field(default_factory=dict)
    prompts: Annotated[int, Field(ge=1)] = 48  # of a round
    candidates: Annotated[int, Field(ge=1)] = 4
    sampler: Choice = Choice(name="temperature")
    opponent: Choice = Choice(name="latest")
    pairing: Choice = Choice(name="best_worst")
    gate: Gate = Gate()


class Settings(Config):
    """What the stage reads of params.yaml."""

    run: Run = Run()
    optimize: Optimize = Optimize()
    selfplay: Selfplay


def stage(name: str) -> Stage[Settings]:
    """The stage of one round."""
    return Stage(
        name=f"selfplay/{name}",
        schema=Settings,
        run=partial(run, name),
        inputs=partial(inputs, name),
        output=Path("data/selfplay") / name,
        check=partial(check, name),
    )


def check(name: str, config: Settings) -> None:
    """The round is there, and every part exists and takes its settings."""
    if name not in config.selfplay.rounds:
        raise UserError(
            f"no round is called '{name}'", where=f"{WHERE}.rounds", mend=nearest(name, list(config.selfplay.rounds))
        )
    objective = learn.check(config.optimize, config.run)
    for setting, value, need in (("winners", "given", "scores"), ("reference", "opponent", "mismatch")):
        if getattr(config.selfplay.rounds[name], setting) == value and need in objective.spec.needs:
            what = f"'{value}' leaves objective '{objective.name}' without the {need} that it needs"
            raise UserError(what, where=f"{WHERE}.rounds.{name}.{setting}", mend="drop the setting")
    panel.check(config.selfplay, where=WHERE, family=config.run.family)
    for kind in ("sampler", "opponent", "pairing"):
        part, _ = getattr(config.selfplay, kind).part(kind, f"selfplay.{kind}")
        parts.fits(part, config.run.family, where=f"{WHERE}.{kind}.name")


def inputs(name: str, config: Settings) -> dict[str, Path]:
    """Paths by name, as in dvc.yaml."""
    return {
        "policy": Path(config.selfplay.rounds[name].previous),
        "prompts": PROMPTS,
        "model": MODEL,
        "encoder": ENCODER,
        "scorer": SCORER,
        "labelled": LABELLED,
        "parts": Path("data/parts/selfplay.json"),
    }


def run(name: str, job: Job[Settings]) -> dict[str, float]:
    """Write the policy, what it learned from, gate.json, and the curves of its training."""
    config = job.config.selfplay
    previous = family.passed(Path(config.rounds[name].previous))
    prompts = chosen_prompts(config, name)
    scored, made = labelled(job, prompts, sample(job, prompts, previous), winners=config.rounds[name].winners)
    records.write(job.out / "candidates.jsonl", scored)
    records.write(job.out / "preferences.jsonl", made)
    optimize = job.config.optimize
    cache = reference(job, previous if config.rounds[name].reference == "previous" else rival(config, previous), made)
    policy = family.to_train(job.config.run, previous, lora_r=optimize.lora_r)
    summary = learn.learn(
        policy,
        made,
        optimize,
        cache,
        seed=job.config.run.seed,
        scratch=job.scratch,
        journal=job.journal,
        label=f"selfplay {name}",
    )
    policy.save(job.out)
    del policy
    files.write_json(job.out / "previous.json", {"previous": str(previous)})
    verdict = judge(job, prompts, [c for c in scored if not is_opponent(c)])
    files.write_json(job.out / "gate.json", verdict)
    job.journal.checkpoint(job.out, step=-1)
    job.journal.table("scored_candidates", preferences.table(prompts, scored)[:200])
    return {
        **preferences.summary(scored, made),
        **rollout.summary(scored),
        **summary,
        "gate/continue": float(bool(verdict["continue"])),
    }


def chosen_prompts(config: Selfplay, name: str) -> list[Prompt]:
    """The round's own stretch of the training prompts, going round at the end."""
    every = records.read(PROMPTS, Prompt)
    start = config.rounds[name].skip
    return [every[(start + i) % len(every)] for i in range(min(config.prompts, len(every)))]


def sample(job: Job[Settings], prompts: list[Prompt], previous: Path) -> list[Candidate]:
    """Candidates of the policy, and of its opponent where that is another one."""
    config = job.config.selfplay
    other, drawn = rival(config, previous), []
    for folder, mark in [(previous, "")] + ([(other, "o")] if other != previous else []):
        drawn += [_marked(c, mark) for c in draw_from(folder, job, prompts, config.candidates, f"chunks{mark}")]
    order = {prompt.id: i for i, prompt in enumerate(prompts)}
    return sorted(drawn, key=lambda c: order[c.prompt])


def rival(config: Selfplay, previous: Path) -> Path:
    """The policy that the opponent part chooses out of those that led to this one."""
    opponent, options = config.opponent.part("opponent", "selfplay.opponent")
    chosen: Path = opponent.function(family.ancestors(previous), **options)
    return chosen


def draw_from(folder: Path, job: Job[Settings], prompts: list[Prompt], k: int, chunks: str) -> list[Candidate]:
    """K candidates of each prompt from the policy in a folder. One seed: what differs is the policy, not the luck."""
    run = job.config.run
    sampler, settings = job.config.selfplay.sampler.part("sampler", "selfplay.sampler")
    policy = family.load(run, folder)
    draw = partial(sampler.function, policy, k=k, seed=run.seed, **settings)
    label = f"generate from {folder}"
    return rollout.sample(draw, prompts, k, job.scratch / chunks, label=label, chunk=policy.chunk)


def labelled(
    job: Job[Settings], prompts: list[Prompt], sampled: list[Candidate], *, winners: str
) -> tuple[list[Candidate], list[Preference]]:
    """The samples with their scores, and the preferences that the round learns from."""
    config, helpers = job.config.selfplay, tools(job)
    if winners == "labelled":
        return preferences.make(
            config, config.pairing, prompts, sampled, helpers, seed=job.config.run.seed, where="selfplay"
        )
    scored = labelling.score(config, labelling.align(prompts, sampled), sampled, helpers)
    made: list[Preference] = [pair for prompt in prompts for pair in given_first(prompt, scored)]
    return scored, made


def given_first(prompt: Prompt, sampled: list[Candidate]) -> list[Pair]:
    """The best answer that came with a prompt over each of the opponent's, the policy's own where it plays itself.

    Raises:
        UserError: the prompt came with no answer.
    """
    if not prompt.given:
        mend = "give it one, or learn from labels: winners: labelled"
        raise UserError("came with no answer", where=f"prompt {prompt.id}", mend=mend)
    winner = max(prompt.given, key=lambda completion: completion.score or 0.0)
    own = [c for c in sampled if c.prompt == prompt.id]
    losers = [c for c in own if is_opponent(c)] or own
    return [
        Pair(
            id=f"{prompt.id}/given-{loser.id.rpartition('/')[2]}",
            messages=prompt.messages,
            chosen=winner,
            rejected=completion(loser),
        )
        for loser in losers
        if not loser.blank and loser.content != (winner.image or winner.text)
    ]


def tools(job: Job[Settings]) -> Tools:
    """What the round's panel needs."""
    needs = panel.needs(job.config.selfplay, where=WHERE)
    return toolbox.load(needs, job.config.run, encoder=ENCODER, model=MODEL, scorer=SCORER)


def _marked(candidate: Candidate, mark: str) -> Candidate:
    head, _, k = candidate.id.rpartition("/")
    return candidate.model_copy(update={"id": f"{head}/{mark}{k}"})


def is_opponent(candidate: Candidate) -> bool:
    """Whether the opponent, and not the policy, gave this answer."""
    return candidate.id.rpartition("/")[2].startswith("o")


def judge(job: Job[Settings], prompts: list[Prompt], before: list[Candidate]) -> dict[str, object]:
    """What the gate says of fresh samples of the new policy, scored by the panel that scored the old one's."""
    config = job.config.selfplay
    drawn = draw_from(job.out, job, prompts, config.gate.candidates, "after")
    after = labelling.score(config, labelling.align(prompts, drawn), drawn, tools(job))
    records.write(job.out / "after.jsonl", after)
    verdict = decide(config.gate, before, after)
    reasons = "" if verdict["continue"] else f": {verdict['reasons']}; nothing builds on this round"
    print(f"gate {'not ' * bool(reasons)}passed{reasons}")
    return verdict


def reference(job: Job[Settings], folder: Path, made: list[Preference]) -> Cache:
    """Log-probs of the round's answers under the policy that it stays close to, once, kept in scratch."""
    kept = job.scratch / "reference.safetensors"
    if not kept.exists():
        policy, optimize = family.load(job.config.run, folder), job.config.optimize
        objective, _ = optimize.objective.part("objective", "optimize.objective")
        examples = feed.examples(objective, made, where="params.yaml optimize.objective.name")
        feed.reference(policy, feed.at_draws(policy, examples, optimize.num_train_epochs)).save(kept, {})
    return Cache.load(kept, {})
