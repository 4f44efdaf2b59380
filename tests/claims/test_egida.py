"""Safety pairs on a policy of a few weights: attack success and over-refusal, on styles and topics never trained on.

The policy refuses with probability sigmoid(theta . [1, cue, topics, styles]). Before training it refuses what looks
harmful, unless an attack style takes 3 off its logit. Pairs are made only where one of its own answers was unsafe.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages import parts
from stages.batches import Pairs, Singles, Steps
from tests.claims.claim import Claim, measure

TOPICS, STYLES, SEEN_TOPICS, SEEN_STYLES = 8, 8, 5, 4
PAIRS, UPDATES, FRONTIER, RATE, BETA = 1000, 60, 300, 0.05, 0.1
SPLITS = {  # topics and styles to choose from; style 0 is plain
    "seen": (range(SEEN_TOPICS), range(SEEN_STYLES + 1)),
    "unseen style": (range(SEEN_TOPICS), range(SEEN_STYLES + 1, STYLES + 1)),
    "unseen topic": (range(SEEN_TOPICS, TOPICS), range(SEEN_STYLES + 1)),
}
CLAIMS = (
    *(
        Claim(f"Attacks of the kind '{name}' succeed far less often", f"base, {name}", f"dpo, {name}", margin=0.3)
        for name in SPLITS
    ),
    Claim("Benign prompts that sound harmful are refused more often: the price", "dpo, refused", "base, refused", 0.3),
    Claim(
        "With a third of benign pairs among as many the price is lower",
        "dpo, refused",
        "dpo and benign, refused",
        margin=0.1,
    ),
    Claim(
        "With benign pairs the best step that refuses at most 30% of benign prompts lets fewer attacks through",
        "dpo, unseen style at 30% refused",
        "dpo and benign, unseen style at 30% refused",
        margin=0.05,
    ),
    Claim(
        "SFT on the same safe answers lets more attacks in unseen styles through after as many steps",
        "sft, unseen style",
        "dpo, unseen style",
    ),
    Claim(
        "At equal refusals of benign prompts DPO and SFT on safe answers let the same through",
        "dpo, unseen style at 30% refused",
        "sft, unseen style at 30% refused",
        within=0.03,
    ),
)


def features(noise: torch.Generator, count: int, *, harmful: bool, split: str = "seen", plain: bool = False) -> Tensor:
    """Prompts `[n,2+topics+styles]`: 1, a noisy cue of harm, topic and style."""
    topics, styles = SPLITS[split]
    topic = torch.tensor(list(topics))[torch.randint(len(topics), (count,), generator=noise)]
    style = torch.tensor(list(styles))[torch.randint(len(styles), (count,), generator=noise)] * (not plain)
    cue = float(harmful) + 0.3 * torch.randn(count, 1, dtype=torch.float64, generator=noise)
    marked = F.one_hot(style, STYLES + 1)[:, 1:]
    return torch.cat((torch.ones_like(cue), cue, F.one_hot(topic, TOPICS), marked), -1).double()


def base() -> Tensor:
    """Weights of the policy before training."""
    return torch.cat((torch.tensor([-3.5, 6.5]), torch.zeros(TOPICS), torch.full((STYLES,), -3.0))).double()


def steps(logp: Tensor, ref: Tensor) -> Steps:
    """An answer as one step."""
    return Steps(logp[:, None], torch.ones(len(logp), 1, dtype=torch.bool), ref=ref[:, None])


def unsafe_prompts(noise: torch.Generator, count: int) -> Tensor:
    """Prompts of the training pool to which the policy before training gave an unsafe answer."""
    asked = features(noise, 20 * count, harmful=True)
    failed = torch.rand(len(asked), generator=noise, dtype=torch.float64) > torch.sigmoid(asked @ base())
    return asked[failed][:count]


def trained(objective: str, asked: Tensor, refuse: Tensor, updates: int) -> list[Tensor]:
    """Weights after each step: `refuse` (1 or -1) says which answer to each prompt is the right one."""
    loss = parts.find("objective", objective).function
    theta = base().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=RATE)
    right, wrong = (F.logsigmoid(sign * refuse * (asked @ base())) for sign in (1, -1))
    path = []
    for _ in range(updates):
        chosen, rejected = (steps(F.logsigmoid(s * refuse * (asked @ theta)), r) for s, r in ((1, right), (-1, wrong)))
        batch = Pairs(chosen, rejected) if objective != "nll" else Singles(chosen, label=torch.ones_like(right))
        optimizer.zero_grad()
        loss(batch, **({"beta": BETA} if objective == "dpo" else {}))[0].mean().backward()
        optimizer.step()
        path.append(theta.detach().clone())
    return path


def rates(theta: Tensor, seed: int) -> dict[str, float]:
    """Attack success by split and share of benign prompts refused, exact in the answers."""
    noise = torch.Generator().manual_seed(1000 + seed)
    tests = {name: features(noise, 4000, harmful=True, split=name) for name in SPLITS}
    benign = features(noise, 4000, harmful=False, plain=True)
    told = {name: float(1 - torch.sigmoid(asked @ theta).mean()) for name, asked in tests.items()}
    return {**told, "refused": float(torch.sigmoid(benign @ theta).mean())}


def at(path: list[Tensor], seed: int, refused: float) -> float:
    """The lowest attack success in unseen styles of all steps that refuse at most this share of benign prompts."""
    told = [rates(theta, seed) for theta in [base(), *path]]
    return min(one["unseen style"] for one in told if one["refused"] <= refused)


def once(seed: int) -> dict[str, float]:
    noise = torch.Generator().manual_seed(seed)
    harmful, third = unsafe_prompts(noise, PAIRS), PAIRS // 3
    benign = features(noise, third, harmful=False, plain=True)
    mixed = torch.cat((harmful[: PAIRS - third], benign))
    refuse = torch.ones(PAIRS, dtype=torch.float64)
    either = torch.cat((refuse[: PAIRS - third], -refuse[:third]))
    paths = {
        "dpo": trained("dpo", harmful, refuse, FRONTIER),
        "dpo and benign": trained("dpo", mixed, either, FRONTIER),
        "sft": trained("nll", harmful, refuse, FRONTIER),
    }
    ends = {"base": base(), **{name: path[UPDATES - 1] for name, path in paths.items()}}
    told = {f"{name}, {key}": value for name, theta in ends.items() for key, value in rates(theta, seed).items()}
    told |= {f"{name}, unseen style at 30% refused": at(path, seed, 0.3) for name, path in paths.items()}
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("egida", "dpo", once, CLAIMS, seeds=6)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
