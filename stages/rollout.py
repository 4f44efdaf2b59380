"""Sample candidates for many prompts, in chunks that survive a kill: shared by generate, selfplay and evaluate."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from stages import records
from stages.records import Candidate, Prompt


def sample(
    draw: Callable[[list[Prompt]], list[Candidate]],
    prompts: Sequence[Prompt],
    k: int,
    scratch: Path,
    *,
    label: str,
    chunk: int,
) -> list[Candidate]:
    """Candidates of all prompts, in the order of the prompts.

    Prompts of similar length are sampled side by side. A finished chunk is a file in scratch; a run that was killed
    finds it there.

    Args:
        draw: k candidates of each of some prompts.
        prompts: what to answer.
        k: candidates a prompt, to size the chunks.
        scratch: where chunks lie.
        label: name on the progress line.
        chunk: candidates that are drawn, and lost by a kill, together: the policy's `chunk`.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    order = sorted(prompts, key=lambda p: (sum(len(m.content) for m in p.messages), p.id))
    per_chunk = max(1, chunk // max(1, k))
    drawn: dict[str, list[Candidate]] = {}
    with tqdm(total=len(order), desc=label, unit="prompt", dynamic_ncols=True) as bar:
        for start in range(0, len(order), per_chunk):
            asked = order[start : start + per_chunk]
            file = scratch / f"{start:06d}.jsonl"
            if not file.exists():
                part = file.with_suffix(".part")
                records.write(part, draw(asked))
                os.replace(part, file)
            for candidate in records.read(file, Candidate):
                drawn.setdefault(candidate.prompt, []).append(candidate)
            bar.update(len(asked))
    return [candidate for prompt in prompts for candidate in drawn.get(prompt.id, [])]


def summary(candidates: Sequence[Candidate]) -> dict[str, float]:
    """What candidates look like, under TRL's names."""
    if not candidates:
        return {}
    sizes = [len(c.tokens) or len(c.text.split()) for c in candidates]
    spread = [c.entropy or 0.0 for c in candidates if c.entropy is not None or not c.tokens]
    return {
        "completions/count": len(candidates),
        "completions/mean_length": sum(sizes) / len(sizes),
        "completions/clipped_ratio": sum(not c.finished for c in candidates) / len(candidates),
    } | ({"entropy": sum(spread) / len(spread)} if spread else {})
