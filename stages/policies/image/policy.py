"""The image policy: a diffusion or flow denoiser that samples pictures and prices them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stages.batches import Item, Steps
from stages.errors import UserError
from stages.images import encode, pack
from stages.policies.image import conventions, pipeline, pricing, sampling
from stages.policies.image.captions import Captions, Embed
from stages.policies.image.codec import Codec, factor
from stages.policies.image.denoiser import Denoiser
from stages.policies.image.memory import Memory
from stages.policies.image.sampling import Rollout
from stages.policies.image.schedule import Schedule
from stages.policies.image.settings import ImageSettings
from stages.records import Candidate, Prompt

if TYPE_CHECKING:
    from stages.policies.family import Policy

PRICED = 64  # images of a batch that is priced without a gradient


class ImagePolicy:
    """A denoiser with its noise levels, its caption encoder and, where it has one, its autoencoder."""

    family = "image"
    seeded = True
    chunk = 64

    def __init__(
        self,
        model: nn.Module,
        scheduler: Any,
        vae: Any = None,
        settings: ImageSettings = ImageSettings(),
        shape: tuple[int, int, int] | None = None,
        *,
        embed: Embed | None = None,
        home: pipeline.Home | None = None,
    ) -> None:
        """Put a policy together from its components.

        Args:
            model: called as its pipeline does; without one as `model(x, t, encoder_hidden_states=c)` or, where its
                signature has them, with `hidden_states` and `timestep` by name; returns a tensor or something with a
                `.sample`.
            scheduler: a diffusers scheduler: its prediction type and noise levels are used, not its step.
            vae: an autoencoder, frozen.
            settings: the node `run.policy`.
            shape: of the latents `(c, h, w)`; read from the model's config where not given.
            embed: captions to conditions `[n, ...]` of any type (class ids too), in place of the pipeline's text
                encoders; it must know the empty caption where guidance or `drop_prompt` is used.
            home: the pipeline that the components came from: it encodes captions, and can be saved.
        """
        self.settings, self.home = settings, home
        self.device = next(model.parameters()).device
        way = home.convention if home else conventions.of_model(model)
        self.shape = shape or pipeline.latent_shape(model, vae, settings.resolution, settings.patch, way.packing)
        scale = factor(vae, settings.patch)
        if embed is None and home is not None:
            embed = conventions.PromptEmbed(home.pipe, way.reads)
        self.captions = Captions(embed or (lambda captions: {}), self.device)
        self.denoiser = Denoiser(
            model,
            self.captions,
            way,
            (scale * self.shape[1], scale * self.shape[2]),
            checkpointing=settings.gradient_checkpointing,
        )
        self.dtype = self.denoiser.dtype
        self.schedule = Schedule(scheduler, dtype=self.dtype, device=self.device)
        self.schedule.shift = conventions.shift(scheduler, model, self.shape, way.packing) or self.schedule.shift
        self.codec = Codec(vae, self.shape, self.dtype, self.device, patch=settings.patch)
        self.noise = settings.noise_level if self.schedule.flow else settings.eta

    @property
    def model(self) -> nn.Module:
        """The denoiser."""
        return self.denoiser.model

    @property
    def steps(self) -> int:
        """Denoising steps of a sample."""
        return self.settings.steps

    # ---------------------------------------------------------------------------------------------- on disk

    @classmethod
    def load(
        cls,
        folder: Path,
        settings: ImageSettings = ImageSettings(),
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        trainable: bool = False,
        lora_r: int = 0,
        seed: int = 0,
    ) -> ImagePolicy:
        """Read a diffusers pipeline folder, or a LoRA folder on top of the pipeline it names (see pipeline.read).

        Raises:
            UserError: no pipeline there, weights in a pickle format, or a corrupt file.
        """
        home = pipeline.read(folder, device=device, dtype=dtype, trainable=trainable, lora_r=lora_r, seed=seed)
        return cls(home.model, home.pipe.scheduler, getattr(home.pipe, "vae", None), settings, home=home)

    def save(self, folder: Path) -> None:
        """Write what `load` reads: the LoRA weights alone where there are some, else the whole pipeline.

        Raises:
            UserError: the policy was put together in code and belongs to no pipeline.
        """
        if self.home is None:
            mend = "load the policy from a pipeline folder"
            raise UserError("the policy belongs to no pipeline", where=str(folder), mend=mend)
        pipeline.write(self.home, folder)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What an optimizer moves, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad} | self.captions.parameters()

    def memory(self) -> dict[str, Memory]:
        """What was computed once and may be kept: captions whose encoder is frozen, latents from an autoencoder."""
        captions = {} if self.captions.parameters() else {"captions": self.captions.known}
        return captions if self.codec.vae is None else {**captions, "latents": self.codec.known}

    # ---------------------------------------------------------------------------------------------- pricing

    def batches(self, items: Sequence[Item]) -> Iterator[list[int]]:
        """Indices of items that are priced together without a gradient."""
        for start in range(0, len(items), PRICED):
            yield list(range(start, min(start + PRICED, len(items))))

    def log_probs(
        self,
        items: Sequence[Item],
        *,
        entropy: bool = False,
        top_k: int = 0,
        hidden: bool = False,
        reference: Policy | None = None,
    ) -> Steps:
        """Log-probs of completions, float32, differentiable, by `settings.likelihood`. There is no `top` or `hidden`.

        `elbo`: a surrogate, not a likelihood, `[b, levels]`: each from the mean squared error over dims of the
        model's output at the (timestep, noise) that `Item.draw` seeds, see `noise.weighted`. It has no entropy.
        `trajectory`: the exact Gaussian log-prob of stored denoising steps, the MEAN over dims, `[b, 1]` at the
        random step that the draw seeds, or `[b, T]` of which the random steps are real.

        Given a reference its log-probs stand in `ref`, and in `kl` the exact KL of each step from the reference's
        (`elbo`: the mean squared difference of the two outputs), both as means over dims.

        Raises:
            UserError: a completion without an image or without its trajectory, or a deterministic sampler.
        """
        assert reference is None or isinstance(reference, ImagePolicy)
        return pricing.steps(self, items, entropy=entropy, reference=reference)

    def step_logp(self, rollout: Rollout, reference: ImagePolicy | None = None) -> Steps:
        """Log-probs of a rollout's steps under this policy, differentiable, `[n,T]`.

        Returns:
            Steps with `old` of the policy that sampled and, given a reference, `ref` and the exact `kl` of each step
            from the reference's, all means over dims.
        """
        return pricing.again(self, rollout, reference)

    # ---------------------------------------------------------------------------------------------- sampling

    def sample(
        self,
        prompts: Sequence[Prompt],
        k: int,
        *,
        seed: int,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float | None = None,
    ) -> list[Candidate]:
        """Draw k images of each prompt, ordered by prompt then k.

        Every row draws from its own seeded stream of noise, so that it does not depend on what else is in the batch.

        Args:
            prompts: the last message of each is its caption.
            k: images of each.
            seed: of all noise.
            steps: denoising steps, else the settings'.
            eta: how random a step is (flow: the noise level), else the settings'; 0 is deterministic.
            guidance: weight of classifier-free guidance, else the settings'.

        Returns:
            Candidates with `latents` and `logps` (a step each, mean over dims, 0 where it is not random) where
            `likelihood` is `trajectory` and the three numbers are the settings', so that they can be priced again.
        """
        asked = sampling.rows(prompts, k, seed, shared_start=self.settings.shared_start)
        given = (steps or self.settings.steps, self.noise if eta is None else eta)
        weight = self.settings.guidance if guidance is None else guidance
        grid = self.schedule.grid(*given)
        own = (*given, weight) == (self.settings.steps, self.noise, self.settings.guidance)
        owners = [prompt.id for prompt in prompts for _ in range(k)]
        ids = [f"{prompt.id}/{i}" for prompt in prompts for i in range(k)]
        if self.settings.likelihood == "elbo" or not own or not grid.mask.any():
            pixels = sampling.finish(self, asked, grid, weight)
            return [Candidate(id=i, prompt=o, image=encode(p)) for i, o, p in zip(ids, owners, pixels, strict=True)]
        found = sampling.rollout(self, asked, grid, weight)
        rows = zip(ids, owners, found.pixels, found.latents, found.logp.double().tolist(), strict=True)
        return [
            Candidate(id=i, prompt=o, image=encode(p), latents=pack(x), logps=tuple(round(v, 6) for v in logp))
            for i, o, p, x, logp in rows
        ]

    def rollout(self, prompts: Sequence[Prompt], k: int, *, seed: int) -> Rollout:
        """Draw k trajectories of each prompt and keep them in memory, without a gradient.

        Raises:
            UserError: the sampler is deterministic, so that its steps have no log-probs.
        """
        asked = sampling.rows(prompts, k, seed, shared_start=self.settings.shared_start)
        grid = pricing.stochastic(self, self.settings.steps)
        return sampling.rollout(self, asked, grid, self.settings.guidance)

    def differentiable_sample(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        k: int = 1,
        grad_steps: int | Callable[[int], int],
        repeats: int = 0,
    ) -> Tensor:
        """Draw images with the gradient of the last denoising steps.

        The noise of the settings' `eta` or `noise_level` is a constant for the gradient.

        Args:
            prompts: the last message of each is its caption.
            seed: of all noise.
            k: images of each.
            grad_steps: how many of the last steps have a gradient, at most all; or a rule from their number to it.
            repeats: DRaFT-LV: the gradient is that of the last step alone, from this many fresh noisings of the
                finished image; `grad_steps` does not matter then.

        Returns:
            Pixels `[n,c,h,w]` by prompt then k (with repeats `[repeats * n,c,h,w]`, all rows of the first noising
            first), not clamped: a clamp would stop the gradient of saturated pixels.
        """
        asked = sampling.rows(prompts, k, seed, shared_start=self.settings.shared_start)
        grid, guidance = self.schedule.grid(self.settings.steps, self.noise), self.settings.guidance
        last = grad_steps(self.settings.steps) if callable(grad_steps) else grad_steps
        for x, _ in sampling.walk(self, asked, grid, guidance, grad_steps=0 if repeats else last):
            found = x
        if repeats:
            found = sampling.renoised(self, found, asked, grid, guidance, repeats)
        return self.codec.decode(found)
