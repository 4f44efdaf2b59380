"""Flow-GRPO on the digits: a policy gradient over the steps of the flow's SDE, and what its KL holds back."""

from functools import partial

import pytest
import torch
from torch import Tensor

from stages.batches import Item, Singles
from stages.images import encode
from stages.optimize.objectives.nll import nll
from stages.policies.image import Policy
from stages.policies.image.sampling import Rollout
from stages.records import Completion
from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

ROUNDS, KL = 20, 1.0

CLAIMS = (
    Claim("Flow-GRPO is above no training", "flow-grpo", "base", margin=0.05),
    Claim(
        "Flow-GRPO is ahead of online SFT on the best image of each group",
        "flow-grpo",
        "sft on the best",
        tried="as many images, updates and the same learning rate of 3e-4; SFT sees an image at six levels an update",
    ),
    Claim("Flow-GRPO keeps more of the quality than that SFT", "own, flow-grpo", "own, sft on the best"),
    Claim("With a KL term brightness rises less", "flow-grpo", "flow-grpo, kl"),
    Claim("With a KL term the velocity drifts less from the reference's", "drift, flow-grpo", "drift, flow-grpo, kl"),
    Claim("The quality guard falls by less than 0.1", "own, flow-grpo", "own, base", margin=-0.1),
)


def drift(policy: Policy, seed: int) -> float:
    """Mean squared difference of the velocities of policy and reference on noised samples of the reference."""
    model = digits.policy(seed, "flow")
    reference = digits.policy(seed, "flow")
    model.model.load_state_dict(policy.model.state_dict())
    asked = digits.prompts(200)
    drawn = reference.sample(asked, 1, seed=4)
    items = [Item(c.id, p.messages, Completion(image=c.image), c.id) for p, c in zip(asked, drawn, strict=True)]
    with torch.no_grad():
        return float(model.log_probs(items, reference=reference).kl.mean())


def tuned(found: Rollout, reward: Tensor, *, policy: Policy) -> Tensor:
    """SFT on the best image of each group, at six noise levels; every round has draws of its own."""
    best = (reward.argmax(1) + 8 * torch.arange(10)).tolist()
    prompts = digits.prompts()
    name = float(found.pixels.sum())
    items = [
        Item(f"{row}", prompts[row // 8].messages, Completion(image=encode(found.pixels[row])), f"{name}/{row}")
        for row in best
    ]
    return nll(Singles(policy.log_probs(items)))[0].mean()


def once(seed: int) -> dict[str, float]:
    base = runs.flowed(digits.policy(seed, "flow"))
    told = {"base": base["brightness"], "own, base": base["own"]}
    for name, beta in {"flow-grpo": 0.0, "flow-grpo, kl": KL}.items():
        policy = runs.flow_grpo(seed, beta=beta)
        after = runs.flowed(policy)
        told |= {name: after["brightness"], f"own, {name}": after["own"], f"drift, {name}": drift(policy, seed)}
    policy = digits.policy(seed, "flow", levels=6)
    runs.by_hand(policy, partial(tuned, policy=policy), seed=seed, rounds=ROUNDS, learning_rate=3e-4)
    after = runs.flowed(policy)
    return {**told, "sft on the best": after["brightness"], "own, sft on the best": after["own"]}


@pytest.fixture(scope="module")
def figures():
    return measure("flow-grpo", "flow_grpo", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
