"""A moving average of a policy's weights: its recent self, which online learning may hold it to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stages.policies.family import Policy

Watch = Callable[[int, bool], dict[str, float]]


class Average:
    """A policy and a copy of it that follows after every update n, as in AWM's code (arXiv 2509.25050).

        average <- d * average + (1 - d) * policy,   d = min(0.3, 0.001 * n)

    It costs the memory of another policy.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.copy = policy, copy.deepcopy(policy)
        self.weights = self.copy.parameters()
        for weight in self.weights.values():
            weight.requires_grad_(False)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What the loop moves and keeps in checkpoints: the policy's, and these, which have no gradient."""
        return self.policy.parameters() | {f"average/{name}": weight for name, weight in self.weights.items()}

    @torch.no_grad()
    def follow(self, update: int) -> None:
        """Take the policy's weights in after its update number `update`, counted from 1."""
        for name, weight in self.policy.parameters().items():
            self.weights[name].lerp_(weight, 1 - min(0.3, 0.001 * update))

    def watched(self, watch: Watch | None) -> Watch:
        """What the loop calls after each update: the average follows, then whoever looks at samples looks."""

        def after(update: int, last: bool) -> dict[str, float]:
            self.follow(update)
            return watch(update, last) if watch else {}

        return after
