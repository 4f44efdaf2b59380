"""KL surrogate of an image policy: how much better than its reference it denoises its own answers."""

from collections.abc import Sequence

import numpy as np

from stages.evaluate.metrics._rows import Confidence, Rows, spread
from stages.parts import part


@part(paper="arXiv 2311.12908", families=("image",), needs=("reference",), range=(-np.inf, np.inf), higher=False)
class SurrogateKl:
    """Mean log-ratio to the reference on the policy's own answers, in the unit of one priced step.

        h            = L - R        L, R: mean over seeded draws of (level, noise), and over steps, of the log-prob
        surrogate_kl = mean(h)

    The likelihood of an image is not known. Diffusion-DPO puts a bound's term in its place, minus half the mean squared
    error of the denoiser at one noise level, and this is the same term's log-ratio. It is *not* KL in nats per answer:
    it is a mean over steps, levels and pixels, so it says which of two policies of one base is further away, and
    nothing across bases, sizes or `likelihood` settings. 0 for a policy that equals its reference.
    Where `run.policy.likelihood` is `trajectory`, L and R are exact log-probs of sampled denoising steps, a mean over
    pixels, and the value estimates the mean KL of a step for one pixel in nats.

    Args:
        confidence: coverage of `lower` .. `upper`, a normal interval over answers, left out for one row.

    `update` takes `logp` and `ref_logp` `[n]`, priced at the same draws, so that their noise cancels.

    Differences from the paper: it reports the ratio on held-out pairs only (its implicit accuracy).

    >>> metric = SurrogateKl()
    >>> metric.update(logp=[-0.25, -0.5], ref_logp=[-0.5, -0.5])
    >>> {key: round(value, 3) for key, value in metric.compute().items()}
    {'surrogate_kl': 0.125, 'standard_error': 0.125, 'lower': -0.12, 'upper': 0.37}

    Source: Wallace et al., Diffusion Model Alignment Using Direct Preference Optimization, CVPR 2024, arXiv 2311.12908.
    """

    def __init__(self, *, confidence: Confidence = 0.95) -> None:
        self.confidence = confidence
        self.rows = Rows("surrogate_kl")

    def update(self, logp: Sequence[float], ref_logp: Sequence[float]) -> None:
        """Add rows."""
        self.rows.add(logp=logp, ref_logp=ref_logp)

    def compute(self) -> dict[str, float]:
        """The mean log-ratio, its error and its interval."""
        h = self.rows["logp"] - self.rows["ref_logp"]
        return {"surrogate_kl": float(h.mean()), **spread(h, self.confidence)}
