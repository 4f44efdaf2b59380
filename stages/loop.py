"""The one training loop: batch, log-probs, loss, step, checkpoint, resume.

Every stage that trains calls `train`. Data order is a pure function of (seed, epoch), so a run that was killed goes on
from its last checkpoint and ends with the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from stages import files
from stages.config import Training

if TYPE_CHECKING:
    from stages.journal import Journal

Example = TypeVar("Example")
CHECKPOINT = "checkpoint.safetensors"  # in scratch
HEAD_RATE = 10.0  # learning rate of parameters beside the policy's, which start from nothing, in units of its own
Loss = Callable[[Sequence[Example], int], tuple[Tensor, dict[str, Tensor]]]


class Trainable(Protocol):
    """What the loop asks of a policy or a reward model."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What the optimizer moves, by name."""
        ...


def train(
    policy: Trainable,
    examples: Sequence[Example],
    loss: Loss,
    settings: Training,
    *,
    seed: int,
    scratch: Path,
    journal: Journal,
    size: Callable[[Example], int],
    label: str,
    repeats: int = 1,
    after: int = 0,
    head: Mapping[str, Tensor] | None = None,
    begin: Callable[[Sequence[Example], int], None] | None = None,
    watch: Callable[[int, bool], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Train a policy in place.

    Args:
        policy: its `parameters()` are moved by AdamW.
        examples: what is learned from, in any order.
        loss: per-example losses `[b]` and statistics `[b]` of a list of examples in an epoch; the mean is taken here.
        settings: epochs, batch, learning rate, ...
        seed: decides the order of the examples.
        scratch: where checkpoints lie.
        journal: where each step's metrics go.
        size: length of an example; a step's examples are split into forward passes of similar length.
        label: name on the progress line.
        repeats: steps in a row that use the same examples; checkpoints fall between.
        after: steps that earlier phases of the same run have logged, in scratch folders of their own.
        head: parameters beside the policy's that the loss depends on, moved in place at `HEAD_RATE` times its learning
            rate; they lie in the checkpoints too, and no limit is set to their gradient.
        begin: called with all examples of a step and their epoch, before their forward passes.
        watch: called with the number of steps done, those of earlier phases and 0 included, and whether that is all
            of this phase; what it tells is logged, `watch/stop` ends training.

    Returns:
        Means over the last tenth of the steps, under TRL's names.
    """
    parameters = policy.parameters()
    moved = {**parameters, **{f"head/{name}": p for name, p in (head or {}).items()}}
    optimizer = descent([parameters.values(), (head or {}).values()], settings)
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    steps_per_epoch = math.ceil(len(examples) / per_step)
    total = length(len(examples), settings, repeats)
    checkpoint = scratch / CHECKPOINT
    done = restore(checkpoint, moved, optimizer) if checkpoint.exists() else 0
    journal.rewind(after + done)
    if watch and not (after or done):
        watch(0, False)
    with tqdm(total=total, initial=done, desc=label, unit="step", dynamic_ncols=True) as bar:
        for step in range(done, total):
            epoch, at = divmod(step // repeats, steps_per_epoch)
            order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
            batch = sorted((examples[i] for i in order[at * per_step : (at + 1) * per_step].tolist()), key=size)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * group["scale"] * rate(step, total, settings)
            if begin:
                begin(batch, epoch)
            row = accumulate(loss, batch, epoch, settings.per_device_train_batch_size)
            row["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), settings.max_grad_norm))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            row["learning_rate"] = optimizer.param_groups[0]["lr"]
            row |= watch(after + step + 1, step + 1 == total) if watch else {}
            journal.log(after + step + 1, row)
            bar.update()
            bar.set_postfix({name: f"{row[name]:.3f}" for name in ("loss", "rewards/accuracies") if name in row})
            if "watch/stop" in row:  # no checkpoint: a run that is killed now would go on from it
                break
            if (step + 1) % (settings.save_steps * repeats) == 0 or step + 1 == total:
                save(checkpoint, moved, optimizer, step + 1)
    return tail(journal.metrics, max(1, total // 10))


def descent(groups: Sequence[Iterable[Tensor]], settings: Training) -> torch.optim.Optimizer:
    """AdamW on the policy's parameters, and on those beside them at a rate of their own."""
    scaled = [{"params": list(group), "scale": scale} for group, scale in zip(groups, (1.0, HEAD_RATE), strict=True)]
    held = [group for group in scaled if group["params"]]
    return torch.optim.AdamW(held, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def length(examples: int, settings: Training, repeats: int = 1) -> int:
    """Steps that training on so many examples takes."""
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    return math.ceil(examples / per_step) * settings.num_train_epochs * repeats


def tail(metrics: Path, count: int) -> dict[str, float]:
    """Means of each metric over the last rows of a journal, of its finite values; nothing of an empty one."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()[-count:]] if metrics.is_file() else []
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:  # a number that was not finite
                columns.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in columns.items() if name != "step"}


def accumulate(loss: Loss, batch: Sequence[Example], epoch: int, at_once: int) -> dict[str, float]:
    """Gradients of the mean loss over a step's examples, `at_once` of them a forward pass; returns the step's means."""
    sums: dict[str, float] = {}
    for start in range(0, len(batch), at_once):
        losses, stats = loss(batch[start : start + at_once], epoch)
        (losses.sum() / len(batch)).backward()
        for name, values in {"loss": losses.detach(), **stats}.items():
            sums[name] = sums.get(name, 0.0) + float(values.sum()) / len(batch)
    return sums


def rate(step: int, total: int, settings: Training) -> float:
    """Share of the learning rate at a step: linear warm-up, then the schedule down to zero."""
    warmup = max(1, round(total * settings.warmup_ratio))
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / max(1, total - warmup)
    return {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[settings.lr_scheduler_type]


def save(path: Path, parameters: dict[str, Any], optimizer: torch.optim.Optimizer, step: int) -> None:
    """Weights and optimizer moments after `step` steps, whole or not at all."""
    tensors = {f"weight/{name}": p for name, p in parameters.items()}
    for name, p in parameters.items():
        tensors |= {f"{key}/{name}": value for key, value in optimizer.state[p].items() if isinstance(value, Tensor)}
    files.save_tensors(path, tensors, {"step": step})


def restore(path: Path, parameters: dict[str, Any], optimizer: torch.optim.Optimizer) -> int:
    """Put back what `save` wrote; returns the step to go on from."""
    tensors, facts = files.load_tensors(path)
    for name, p in parameters.items():
        p.data.copy_(tensors[f"weight/{name}"])
        optimizer.state[p] = {
            key: tensors[f"{key}/{name}"].to(p.device if key != "step" else "cpu")
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{key}/{name}" in tensors  # a parameter that no loss has reached yet has no moments
        }
    return int(facts["step"])
