"""What each cache of the image engine saves: the time of a Diffusion-DPO step with and without it.

    python -m benchmarks.image_caches

Everything cached is the base; each other row does without one cache, the last without all. One process, one policy and
the same batches serve all rows; repetitions are interleaved in a random order, so that a busy machine slows all alike.
The losses of all rows must agree. Captions are encoded anew in one batch, as a trainer without a cache would. Times are
of small models built in code: read the ratios, and expect others where text encoder, autoencoder and denoiser have
other sizes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks._report import RESULTS, machine, publish
from stages import feed, images
from stages.batches import Pairs
from stages.cached import Cache
from stages.optimize.objectives.dpo import dpo
from stages.policies.image import Policy, Settings, tiny
from stages.policies.image.memory import Memory
from stages.records import Completion, Message, Pair

BATCH, BATCHES, SIDE = 8, 4, 64  # pairs of a step, different steps, pixels
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
ROWS = {
    "everything cached": (),
    "reference errors recomputed": ("reference",),
    "caption embeddings recomputed": ("captions",),
    "latents re-encoded": ("latents",),
    "nothing cached": ("reference", "captions", "latents"),
}


def policies(folder: Path) -> tuple[Any, Any]:
    """A policy with an adapter to train and its reference, on latents of a small autoencoder."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    tiny.pipeline(folder, channels=4, blocks=(32, 64), width=256, vae=AutoencoderTiny())
    return Policy.load(folder, Settings(), trainable=True, lora_r=8), Policy.load(folder, Settings())


def pairs() -> list[Pair]:
    """Random pictures under captions that differ within a batch."""
    noise = torch.Generator().manual_seed(0)

    def picture() -> Completion:
        return Completion(image=images.encode(torch.rand(3, SIDE, SIDE, generator=noise) * 2 - 1))

    return [
        Pair(
            id=f"p{n}",
            messages=(Message(role="user", content=f"a picture of {NUMBERS[n % 8]} red shapes"),),
            chosen=picture(),
            rejected=picture(),
        )
        for n in range(BATCH * BATCHES)
    ]


@contextmanager
def forgotten(holder: Any) -> Iterator[None]:
    """An empty memory for the time of a step; what was remembered is put back."""
    kept, holder.known = holder.known, Memory()
    try:
        yield
    finally:
        holder.known = kept


@torch.no_grad()
def encode(captions: Any, wanted: Sequence[str]) -> None:
    """Fill the memory with all captions of a batch at once; the policy itself encodes one at a time."""
    said = list(dict.fromkeys(wanted))
    table = captions.embed(said)
    for i, caption in enumerate(said):
        captions.known.keep(caption, {name: values[i] for name, values in table.items()})


def step(policy: Any, reference: Any, cache: Cache, batch: Sequence[Pair], without: Sequence[str]) -> Tensor:
    """Loss and gradient of a batch `[b]` of pairs, without some of the caches."""
    used = (policy, reference) if "reference" in without else (policy,)
    with ExitStack() as stack:
        for name, of in (("captions", "captions"), ("latents", "codec")):
            for one in used if name in without else ():
                stack.enter_context(forgotten(getattr(one, of)))
                if name == "captions":
                    encode(one.captions, [pair.messages[-1].content for pair in batch])
        made = recomputed(policy, reference, batch) if "reference" in without else cached(policy, cache, batch)
        losses, _ = dpo(made, beta=1000.0)
        losses.mean().backward()
    for parameter in policy.parameters().values():
        parameter.grad = None
    return losses.detach()


def cached(policy: Any, cache: Cache, batch: Sequence[Pair]) -> Pairs:
    """The batch as the optimize stage makes it."""
    made = feed.batch(policy, batch, ("reference",), cache)
    assert isinstance(made, Pairs)
    return made


def recomputed(policy: Any, reference: Any, batch: Sequence[Pair]) -> Pairs:
    """The same batch with the reference priced beside the policy."""
    flat = [feed.items(pair)[side] for side in (0, 1) for pair in batch]
    steps, n = policy.log_probs(flat, reference=reference), len(batch)
    steps = replace(steps, kl=None)
    return Pairs(chosen=feed.rows(steps, slice(0, n)), rejected=feed.rows(steps, slice(n, None)))


def measure(call: Callable[[Sequence[Pair], Sequence[str]], Tensor], repetitions: int) -> dict[str, list[float]]:
    """Seconds of each row's steps; the first round warms up and checks that all rows have the same losses."""
    every, order = pairs(), random.Random(0)
    batches = [every[start : start + BATCH] for start in range(0, len(every), BATCH)]
    for batch in batches:
        base = call(batch, ())
        for name, without in ROWS.items():
            if not torch.allclose(call(batch, without), base, atol=1e-4):
                raise SystemExit(f"{name}: another loss than with all caches")
    seconds: dict[str, list[float]] = {name: [] for name in ROWS}
    for n in range(repetitions):
        for name in order.sample(list(ROWS), len(ROWS)):
            start = time.perf_counter()
            call(batches[n % BATCHES], ROWS[name])
            seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """Medians, and their ratios to the first row's."""
    base = statistics.median(next(iter(seconds.values())))
    lines = ["| a step with | median ms | quartiles | ratio |", "|---|---:|---:|---:|"]
    for name, told in seconds.items():
        low, middle, high = (1000 * q for q in statistics.quantiles(told, n=4))
        lines.append(f"| {name} | {middle:.0f} | {low:.0f} to {high:.0f} | {middle / 1000 / base:.2f} |")
    return "\n".join(lines)


def sizes(policy: Any) -> str:
    """Weights of the components."""
    pipe = policy.home.pipe
    parts = {"denoiser": policy.model, "text encoder": pipe.text_encoder, "autoencoder": pipe.vae}
    told = (f"{name} {sum(p.numel() for p in part.parameters()) / 1e6:.2f}" for name, part in parts.items())
    return f"Million weights: {', '.join(told)}."


def main() -> None:
    """Measure, print, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        policy, reference = policies(Path(folder))
        cache = feed.reference(reference, [item for pair in pairs() for item in feed.items(pair)])
        seconds = measure(
            lambda batch, without: step(policy, reference, cache, batch, without), max(2, chosen.repetitions)
        )
    body = f"`python -m benchmarks.image_caches --repetitions {chosen.repetitions}`\n\n{machine()}\n\n"
    body += f"Diffusion-DPO, {BATCH} pairs of {SIDE} x {SIDE} pixels a step, forward and backward. "
    body += f"{sizes(policy)}\n\n{table(seconds)}"
    print(body)
    publish("image_caches", body, chosen.results)


if __name__ == "__main__":
    main()
