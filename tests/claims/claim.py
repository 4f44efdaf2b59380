"""What a claim is, what was measured of it, and the file that remembers it: claims.json beside the README."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).resolve().parents[2] / "claims.json"
Figures = dict[str, list[float]]  # by name, a number of each seed


@dataclass(frozen=True)
class Claim:
    """A sentence about two figures that holds in every seed, or that was tried and does not."""

    sentence: str
    method: str  # name of a figure
    baseline: str | float  # name of a figure, or a number
    margin: float = 0.0  # by which the method must be above the baseline
    within: float | None = None  # else: by how much the two may differ at most
    tried: str = ""  # where the claim does not show: what was tried

    def shows(self, figures: Figures) -> bool:
        """Whether it holds in every seed."""
        ours = figures[self.method]
        theirs = [self.baseline] * len(ours) if isinstance(self.baseline, float) else figures[self.baseline]
        gaps = [one - other for one, other in zip(ours, theirs, strict=True)]
        if self.within is not None:
            return all(abs(gap) <= self.within for gap in gaps)
        return all(gap > self.margin for gap in gaps)

    @property
    def rule(self) -> str:
        """What the method's figure must do beside the baseline's.

        >>> Claim("", "a", "b").rule, Claim("", "a", "b", 0.3).rule, Claim("", "a", "b", -0.1).rule
        ('above', 'above by 0.3', 'at most 0.1 below')
        """
        if self.within is not None:
            return f"different by at most {self.within:g}" if self.within else "equal"
        if self.margin < 0:
            return f"at most {-self.margin:g} below"
        return f"above by {self.margin:g}" if self.margin else "above"

    def row(self, figures: Figures) -> dict:
        """The claim as claims.json tells it."""
        known = {} if isinstance(self.baseline, float) else {"baseline_figure": summary(figures[self.baseline])}
        rest = {"tried": self.tried} if self.tried else {}
        return {
            "claim": self.sentence,
            "method": self.method,
            "method_figure": summary(figures[self.method]),
            "baseline": self.baseline,
            **known,
            "must": f"{self.rule} in every seed",
            "shown": self.shows(figures),
            **rest,
        }


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds.

    >>> summary([1.0, 3.0])
    {'mean': 2.0, 'n': 2, 'sd': 1.4142}
    """
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)) ** 0.5
    return {"mean": round(mean, 4), "n": len(values), "sd": round(spread, 4)}


def measure(
    slug: str, part: str, once: Callable[[int], dict[str, float]], claims: Sequence[Claim], *, seeds: int = 5
) -> Figures:
    """Measure every seed in turn, say how it goes, and write the entry of `slug` in claims.json.

    Args:
        slug: the method.
        part: the objective that it is a claim about.
        once: the figures of a seed.
        claims: what is claimed of them, the headline first.
        seeds: how many.
    """
    figures: Figures = {}
    begun = time.process_time()
    for seed in range(seeds):
        told = once(seed)
        for name, value in told.items():
            figures.setdefault(name, []).append(value)
        shown = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
        print(
            f"\n{slug} seed {seed + 1}/{seeds} after {time.process_time() - begun:.0f} s of processor time: {shown}",
            flush=True,
        )
    record(slug, part, claims, figures, time.process_time() - begun)
    return figures


def record(slug: str, part: str, claims: Sequence[Claim], figures: Figures, seconds: float) -> None:
    """Put an entry in its place in claims.json; its seconds stay as they were unless they changed by more than half.

    They are those of the processor: a base that is trained on the way counts, others' work on the machine does not.
    """
    for one in claims:
        print(f"{slug}: {'shown' if one.shows(figures) else 'NOT SHOWN'}: {one.sentence}", flush=True)
    held = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    before = held.get(slug, {}).get("seconds", 0.0)
    held[slug] = {
        "part": part,
        "claims": [one.row(figures) for one in claims],
        "figures": {name: summary(values) for name, values in figures.items()},
        "seconds": before if before / 1.5 <= seconds <= before * 1.5 else round(seconds),
        "seeds": list(range(max(map(len, figures.values())))),
    }
    FILE.write_text(json.dumps(held, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
