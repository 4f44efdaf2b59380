"""The image family: a diffusion or flow denoiser as the policy."""

from stages.policies.image.policy import ImagePolicy as Policy
from stages.policies.image.settings import ImageSettings as Settings

__all__ = ["Policy", "Settings"]
