"""The image family: a diffusion or flow denoiser as the policy, a convolutional net as the reward model."""

from stages.policies.image.policy import ImagePolicy as Policy
from stages.policies.image.scorer import Scorer
from stages.policies.image.settings import ImageSettings as Settings

__all__ = ["Policy", "Scorer", "Settings"]
