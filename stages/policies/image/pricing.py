"""Log-probs of finished images, of stored denoising steps and of fresh ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.batches import Item, Steps
from stages.errors import UserError
from stages.images import unpack
from stages.policies.image import noise as arithmetic
from stages.policies.image import seeds
from stages.policies.image.schedule import Grid

if TYPE_CHECKING:
    from stages.policies.image.policy import ImagePolicy
    from stages.policies.image.sampling import Rollout


def steps(policy: ImagePolicy, items: Sequence[Item], *, entropy: bool, reference: ImagePolicy | None) -> Steps:
    """Log-probs of completions by the policy's own likelihood, see `ImagePolicy.log_probs`.

    Raises:
        UserError: a completion without an image or without its trajectory, or a deterministic sampler.
    """
    if policy.settings.likelihood == "elbo":
        logp, out = elbo(policy, items)
        found = Steps(logp=logp, mask=torch.ones_like(logp, dtype=torch.bool))
        if reference is None:
            return found
        with torch.no_grad():
            ref, other = elbo(reference, items)
        return replace(found, ref=ref, kl=(out - other).square().flatten(1).mean(1).view(logp.shape).float())
    priced = trajectory(policy, items)
    found = Steps(logp=priced.logp, mask=priced.mask, entropy=priced.entropy if entropy else None)
    if reference is None:
        return found
    with torch.no_grad():
        held = trajectory(reference, items)
    return replace(found, ref=held.logp, kl=priced.kl(held.mean))


def elbo(policy: ImagePolicy, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """Surrogate log-probs `[b, levels]` from the denoising error at the (timestep, noise) that each draw seeds.

    Returns:
        The log-probs, and the model's outputs `[b*levels,c,h,w]` that they rest on.

    Raises:
        UserError: a completion without an image.
    """
    for item in items:
        if not item.completion.image:
            raise UserError("its completion has no image", where=item.id, mend="give images to the family 'image'")
    count = policy.settings.levels
    where, noise, coin = seeds.levels([item.draw for item in items], count, policy.shape)
    x0 = policy.codec.encode([item.completion.image for item in items]).repeat_interleave(count, 0)  # [n,c,h,w]
    noise = noise.flatten(0, 1).to(x0)
    time, s, (signal, sigma) = policy.schedule.draw(where.flatten())
    level = arithmetic.over(signal, x0), arithmetic.over(sigma, x0)
    kept = (coin >= policy.settings.drop_prompt).tolist()
    captions = [caption(item) if keep else "" for item, keep in zip(items, kept, strict=True) for _ in range(count)]
    condition = policy.denoiser.condition(captions, 1.0)
    out = policy.denoiser(arithmetic.corrupt(x0, noise, level), time, condition, 1.0)
    wanted = arithmetic.target(x0, noise, level, policy.schedule.prediction)
    error = (out - wanted).square().flatten(1).mean(1)  # [n]
    return arithmetic.weighted(error, s, policy.settings.weight).view(len(items), count), out


@dataclass(frozen=True)
class Priced:
    """Denoising steps of trajectories: `[b,1]` at the step that each draw seeds, or `[b,T]`."""

    logp: Tensor
    mask: Tensor
    entropy: Tensor
    mean: Tensor  # [n,c,h,w] of the random ones
    chosen: Tensor  # [b,r] which they are
    grid: Grid

    def kl(self, other: Tensor) -> Tensor:
        """Exact KL of each step from that of another policy with these means, the mean over dims."""
        std = self.grid.std[self.chosen]
        found = arithmetic.gaussian_kl(self.mean, other, std.flatten()).view(std.shape)
        return found if found.shape == self.logp.shape else among(found, self.grid)


def trajectory(policy: ImagePolicy, items: Sequence[Item]) -> Priced:
    """Log-probs of stored denoising steps.

    Raises:
        UserError: a completion without its trajectory, or a deterministic sampler.
    """
    grid, path = stochastic(policy, policy.settings.steps), stored(policy, items)
    random = grid.mask.nonzero().squeeze(1)  # [r]
    chosen = random.expand(len(items), -1)
    if policy.settings.trajectory_steps == "one":
        where = seeds.levels([item.draw for item in items], 1, (1,))[0].to(random.device)  # [b,1]
        chosen = random[(where * len(random)).long()]
    taken, mean = means(policy, [caption(item) for item in items], path, chosen, grid)
    std = grid.std[chosen]
    logp = arithmetic.gaussian_logp(taken, mean, std.flatten()).view(chosen.shape)
    entropy = arithmetic.gaussian_entropy(std)
    if policy.settings.trajectory_steps == "one":
        return Priced(logp, torch.ones_like(logp, dtype=torch.bool), entropy, mean, chosen, grid)
    mask = grid.mask.expand(len(items), -1)
    return Priced(among(logp, grid), mask, among(entropy, grid), mean, chosen, grid)


def caption(item: Item) -> str:
    """What an item's image was asked to show."""
    return item.messages[-1].content


def stored(policy: ImagePolicy, items: Sequence[Item]) -> Tensor:
    """Trajectories `[b,T+1,c,h,w]` as the records hold them.

    Raises:
        UserError: a trajectory is missing or has another number of steps.
    """
    steps = policy.settings.steps
    shape = (steps + 1, *policy.shape)
    found = [unpack(item.completion.latents, (-1,)) if item.completion.latents else torch.empty(0) for item in items]
    for item, one in zip(items, found, strict=True):
        if one.numel() != torch.Size(shape).numel():
            what = f"its trajectory has {one.numel()} numbers, not the {torch.Size(shape).numel()} of {steps} steps"
            mend = "sample it with run.policy.likelihood 'trajectory' and the same run.policy.steps"
            raise UserError(what, where=item.id, mend=mend)
    return torch.stack(found).view(-1, *shape).to(policy.device, policy.dtype)


def stochastic(policy: ImagePolicy, steps: int) -> Grid:
    """The steps of a sampler that has log-probs.

    Raises:
        UserError: none of its steps is random.
    """
    grid = policy.schedule.grid(steps, policy.noise)
    if not grid.mask.any():
        name = "noise_level" if policy.schedule.flow else "eta"
        what = f"a deterministic sampler ({name} {policy.noise:g}, steps {steps}) has no log-probs"
        raise UserError(what, where="run.policy", mend=f"set {name} above 0 and steps above 1")
    return grid


def means(
    policy: ImagePolicy, captions: Sequence[str], path: Tensor, steps: Tensor, grid: Grid
) -> tuple[Tensor, Tensor]:
    """Where chosen steps `[b,r]` of trajectories went and their means under the policy, both `[b*r,c,h,w]`."""
    row = torch.arange(len(path), device=path.device).repeat_interleave(steps.shape[1])
    step = steps.flatten()
    x = path[row, step]
    guidance = policy.settings.guidance
    condition = policy.denoiser.condition([c for c in captions for _ in range(steps.shape[1])], guidance)
    out = policy.denoiser(x, grid.time[step], condition, guidance)
    return path[row, step + 1], grid.mean(x, out, step)


def again(policy: ImagePolicy, rollout: Rollout, reference: ImagePolicy | None) -> Steps:
    """Log-probs of a rollout's steps, see `ImagePolicy.step_logp`."""
    grid = rollout.grid
    random = grid.mask.nonzero().squeeze(1).expand(len(rollout.logp), -1)  # [n,r]
    std = grid.std[random].flatten()

    def table(values: Tensor) -> Tensor:
        return among(values.view(random.shape), grid)

    taken, mean = means(policy, rollout.captions, rollout.latents, random, grid)
    logp, ref, kl = table(arithmetic.gaussian_logp(taken, mean, std)), None, None
    if reference is not None:
        with torch.no_grad():
            _, other = means(reference, rollout.captions, rollout.latents, random, grid)
            ref = table(arithmetic.gaussian_logp(taken, other, std))
        kl = table(arithmetic.gaussian_kl(mean, other, std))
    return Steps(logp=logp, mask=rollout.mask.expand_as(logp), old=rollout.logp, ref=ref, kl=kl)


def among(values: Tensor, grid: Grid) -> Tensor:
    """Values of the random steps `[b,r]` among all steps `[b,T]`, 0 elsewhere."""
    out = values.new_zeros(len(values), len(grid.std))
    return out.masked_scatter(grid.mask.expand_as(out), values)
