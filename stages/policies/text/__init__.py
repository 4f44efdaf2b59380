"""The text family: a causal language model as the policy, a scalar head as the reward model."""

from stages.policies.text.policy import TextPolicy as Policy
from stages.policies.text.policy import TextSettings as Settings
from stages.policies.text.scorer import Scorer

__all__ = ["Policy", "Scorer", "Settings"]
