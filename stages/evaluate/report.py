"""The report: one self-contained page about a policy (the table about many runs is in tables.py).

The page loads nothing and needs no JavaScript. Beside it lie its numbers as CSV and JSON, for `dvc plots` and MLflow.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from stages.evaluate import figures, fronts, pictures
from stages.evaluate.fronts import Point
from stages.evaluate.results import Estimate, Policy, Results, Sample
from stages.evaluate.tables import comparison, number, write_csv

__all__ = ["comparison", "write"]

SHOWN = 8  # samples of each list
GALLERY = 24  # prompts before and after
PANELS = 9  # training curves of each stage
SHADE = 0.6  # opacity behind the token with the most credit
CURVES_FIRST = ("loss", "reward", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected", "kl")


@dataclass(frozen=True)
class Card:
    """How a headline number is shown."""

    key: str
    name: str
    note: str
    digits: int = 2
    rate: bool = False  # in percent, with a scale from 0 to 100 under it


CARDS = (
    Card("win_rate", "Win rate", "by the judges that made the labels", 1, rate=True),
    Card("length_controlled_win_rate", "Length-controlled win rate", "the same at equal lengths", 1, rate=True),
    Card("independent_win_rate", "Independent judge", "made no label", 1, rate=True),
    Card("kl", "KL", "from the reference, nats per answer"),
    Card("surrogate_kl", "KL surrogate", "from the base, mean over denoising steps; not nats of an answer", 4),
    Card("image_diversity", "Diversity", "distance between answers to different prompts, 0 to 2"),
    Card("diversity_within", "Diversity within a prompt", "distance between answers to one prompt, 0 to 2"),
    Card("length", "Length", "characters", 0),
    Card("repetition", "Repetition", "share of 4-grams seen before", 3),
    Card("entropy", "Entropy", "nats per token"),
    Card("ranking_accuracy", "Ranking accuracy", "share of held-out pairs"),
)


def write(folder: Path, results: Results) -> Path:
    """Write `report.html` and, beside it, the data of its plots; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder, results)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = number
    templates.filters["embed"] = pictures.embed
    page = templates.get_template("report.html.j2").render(
        results=results,
        cards=[(card, *around(results.headline, card.key)) for card in CARDS if card.key in results.headline],
        rest=others(results.headline),
        verdict=verdict(results.headline),
        warnings=warnings(results.headline),
        frontier=draw_frontier(folder, results.policies, results.family),
        front=draw_front(folder, results.front, results.front_of),
        curves=draw_curves(results.curves),
        lists=sample_lists(results.samples),
        credited=[(s, shaded(s.credit)) for s in pictures.drawn(results.samples) if s.credit][:SHOWN],
        gallery=pictures.drawn([sample for sample in results.samples if sample.final_images])[:GALLERY],
    )
    path = folder / "report.html"
    path.write_bytes(page.encode("utf-8", "replace"))  # a model may emit half a surrogate pair
    return path


def around(headline: Mapping[str, Estimate], key: str) -> tuple[Estimate, Estimate | None]:
    """A headline number, and what it was before."""
    return headline[key], headline.get(f"base_{key}")


def others(headline: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """The numbers that no card shows."""
    carded = {name for card in CARDS for name in (card.key, f"base_{card.key}")}
    return {key: estimate for key, estimate in headline.items() if key not in carded}


def verdict(headline: Mapping[str, Estimate]) -> str:
    r"""The result in one sentence, empty without a win rate.

    >>> verdict({"win_rate": Estimate(61.25, 55.5, 66.7)})
    'The final policy is preferred to the base in 61.2\xa0% of comparisons (55.5 to 66.7).'
    """
    rate = headline.get("win_rate")
    if rate is None:
        return ""
    known = rate.lower is not None and rate.upper is not None
    ends = f" ({number(rate.lower, 1)} to {number(rate.upper, 1)})" if known else ""
    return f"The final policy is preferred to the base in {number(rate.value, 1)}\u00a0% of comparisons{ends}."


def warnings(headline: Mapping[str, Estimate]) -> list[str]:
    """Signs that the gain is in the judge and not in the answers, in plain words."""
    rate = headline.get("win_rate")
    if rate is None:
        return []
    found, gained = [], rate.value > 50
    independent = headline.get("independent_win_rate")
    told = f"{number(rate.value, 1)}\u00a0% by the judges that made the labels"
    if independent and (independent.value > 50) != gained:
        found.append(f"The independent judge disagrees: {number(independent.value, 1)}\u00a0% wins, against {told}.")
    elif independent and gained and independent.lower is not None and independent.lower <= 50:
        found.append(f"The independent judge sees no certain gain: its interval includes 50\u00a0%, against {told}.")
    controlled = headline.get("length_controlled_win_rate")
    if controlled and gained and controlled.value <= 50:
        found.append(
            f"The gain is one of length: {number(controlled.value, 1)}\u00a0% at equal lengths, against {told}."
        )
    return found


def sample_lists(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Four lists to read: ends of the ranking, a choice that looks at the prompt alone, and where the judges differ.

    Pictures, which are scored on a scale of their own, have the ends of that scale first.
    """
    ranked = sorted(samples, key=lambda sample: sample.prob)
    scored = sorted((s for s in samples if s.score is not None), key=lambda sample: sample.score or 0.0)
    ends = {"Best by score": scored[::-1], "Worst by score": scored} if scored else {}
    split = [
        sample
        for sample in reversed(ranked)
        if sample.independent is not None and (sample.prob - 0.5) * (sample.independent - 0.5) < 0
    ]
    lists = ends | {
        "Biggest wins": [sample for sample in reversed(ranked) if sample.prob > 0.5],
        "Biggest losses": [sample for sample in ranked if sample.prob < 0.5],
        "Random": pictures.drawn(samples),
        "Judges disagree": split,
    }
    return {name: found[:SHOWN] for name, found in lists.items()}


@dataclass(frozen=True)
class Token:
    """How a token with its credit is shown."""

    text: str
    value: float
    shade: float  # opacity of its colour
    least: bool  # it has the least credit of its answer, less than none


def shaded(credit: Sequence[tuple[str, float]]) -> list[Token]:
    """The tokens of an answer, each as strong as its credit is beside the largest of the answer, of either sign.

    >>> [(token.shade, token.least) for token in shaded([("a", 1.0), ("b", -2.0)])]
    [(0.3, False), (0.6, True)]
    """
    values = [value for _, value in credit]
    most, least = max(map(abs, values), default=0.0) or 1.0, min(values, default=0.0)
    framed = values.index(least) if least < 0 else None
    return [Token(text, value, SHADE * abs(value) / most, i == framed) for i, (text, value) in enumerate(credit)]


def draw_frontier(folder: Path, policies: Sequence[Policy], family: str) -> list[Markup]:
    """Reward and win rate over KL (of images its surrogate), and their PNG files."""
    if not policies:
        return []
    names, kl = [policy.name for policy in policies], [policy.kl for policy in policies]
    rates = [policy.win_rate for policy in policies]
    ends = [
        (rate.value if rate.lower is None else rate.lower, rate.value if rate.upper is None else rate.upper)
        for rate in rates
    ]
    far = "KL surrogate from the base, mean over steps" if family == "image" else figures.NATS
    drawn = {
        "frontier": figures.frontier(names, kl, [policy.reward for policy in policies], "Mean reward", far=far),
        "win_rate": figures.frontier(names, kl, [rate.value for rate in rates], "Win rate, %", ends, far=far),
    }
    for name, figure in drawn.items():
        figures.png(figure, folder / f"{name}.png")
    return [figures.inline(figure, name, f"{name} over KL from the reference") for name, figure in drawn.items()]


def draw_front(folder: Path, points: Sequence[Point], rewards: Sequence[str]) -> Markup:
    """One reward over another, of the base and the final policy in each direction, and its PNG file."""
    if not points:
        return Markup()
    figure = fronts.draw(points, rewards)
    figures.png(figure, folder / "front.png")
    return figures.inline(figure, "front", f"{rewards[1]} over {rewards[0]}")


def draw_curves(curves: Sequence[Mapping[str, Any]]) -> dict[str, list[Markup]]:
    """Small multiples by stage: the first PANELS quantities that are numbers, the best known ones first."""
    drawn: dict[str, list[Markup]] = {}
    for place, stage in enumerate(dict.fromkeys(row["stage"] for row in curves)):
        lines: dict[str, list[tuple[float, float]]] = {}
        for row in (row for row in curves if row["stage"] == stage):
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                    lines.setdefault(key, []).append((row["step"], value))
        order = sorted(lines, key=lambda key: CURVES_FIRST.index(key) if key in CURVES_FIRST else len(CURVES_FIRST))
        drawn[stage] = [
            figures.inline(figures.curve(lines[key], key), f"curve{place}-{index}", f"{key} of {stage} over steps")
            for index, key in enumerate(order[:PANELS])
        ]
    return drawn


def write_data(folder: Path, results: Results) -> None:
    """The numbers behind the page: `headline.json`, and one CSV a table."""
    headline = {key: asdict(estimate) for key, estimate in results.headline.items()}
    (folder / "headline.json").write_text(json.dumps(headline, indent=2) + "\n", encoding="utf-8")
    write_csv(folder / "policies.csv", [_flat(asdict(row)) for row in results.policies])
    write_csv(folder / "kinds.csv", [_flat(asdict(row)) for row in results.kinds])
    write_csv(folder / "rewards.csv", [_flat(asdict(row)) for row in results.rewards])
    write_csv(folder / "curves.csv", results.curves)
    if results.front:
        told = [{"policy": p.run, "angle": p.angle, **dict(zip(results.front_of, p.values))} for p in results.front]
        write_csv(folder / "front.csv", told)
    columns = ("prompt", "place", "token", "credit")
    credits = [(s.prompt, place, *told) for s in results.samples for place, told in enumerate(s.credit)]
    write_csv(folder / "credit.csv", [dict(zip(columns, row)) for row in credits])


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """An estimate as three columns; what another family has is left out."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= {key: value["value"], f"{key}_lower": value["lower"], f"{key}_upper": value["upper"]}
        elif value is not None:
            found[key] = value
    return found
