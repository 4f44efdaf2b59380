"""APC against two scores that are easier to think of, where a policy says for each statement what it does to it.

Eight statements, each active for a query with probability 1/4. The policy is neutral to a statement, entails it or
contradicts it, knowing only whether it is active: six numbers. Two answers a query are paired where their scores differ
by more than 0.2, DPO learns from the pairs, and expectations are exact.
"""

import pytest
import torch
from torch import Tensor

from stages import parts
from stages.batches import Pairs, Steps
from tests.claims.claim import Claim, measure

STATEMENTS, QUERIES, ACTIVE = 8, 400, 0.25
BASE = torch.tensor(
    [[1.0, 0.3, 0.0], [0.6, 0.3, 0.2]], dtype=torch.float64
)  # passive, active: neutral, entail, contradict
VALUE = {  # of what is done to a passive and to an active statement
    "apc": torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64),
    "coverage": torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64),
    "active only": torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64),
}
CLAIMS = (
    Claim("Learning from APC keeps nearly all eight constraints", "kept, apc", 7.5),
    Claim(
        "It keeps more of them than learning from the active statements alone", "kept, apc", "kept, active only", 0.5
    ),
    Claim("Learning from coverage keeps fewer than no learning", "kept, base", "kept, coverage"),
    Claim("Learning from APC contradicts next to nothing", "contradicted, apc", 0.0, within=0.1),
    Claim(
        "Learning from the active statements alone contradicts more than APC",
        "contradicted, active only",
        "contradicted, apc",
        0.5,
    ),
    Claim("Learning from coverage contradicts more than no learning", "contradicted, coverage", "contradicted, base"),
)


def expected(logits: Tensor) -> tuple[float, float]:
    """Constraints kept and statements contradicted of an answer, on average over queries."""
    weight = torch.tensor([1 - ACTIVE, ACTIVE], dtype=torch.float64)
    pi = logits.softmax(-1)
    kept = (pi * VALUE["apc"]).sum(-1) @ weight
    return float(STATEMENTS * kept), float(STATEMENTS * pi[:, 2] @ weight)


def learned(score: str, seed: int) -> Tensor:
    """The logits after DPO on pairs by a score."""
    noise = torch.Generator().manual_seed(seed)
    flag = (torch.rand(QUERIES, STATEMENTS, generator=noise) < ACTIVE).long()  # [q,s]
    pi = BASE.softmax(-1)[flag].flatten(0, 1)
    done = torch.multinomial(pi, 2, replacement=True, generator=noise).view(QUERIES, STATEMENTS, 2)
    said = VALUE[score][flag].gather(-1, done).sum(1)  # [q,2]
    gap = said[:, 0] - said[:, 1]
    told = gap.abs() > 0.2
    best = (gap < 0).long()  # which of the two is chosen
    dpo = parts.find("objective", "dpo").function
    logits = BASE.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    mask = torch.ones(int(told.sum()), STATEMENTS, dtype=torch.bool)

    def side(which: Tensor) -> Steps:
        taken = done.gather(-1, which[:, None, None].expand(-1, STATEMENTS, 1)).squeeze(-1)[told]
        of = [(table.log_softmax(-1)[flag[told], taken]) for table in (logits, BASE)]
        return Steps(of[0], mask, ref=of[1])

    for _ in range(100):
        optimizer.zero_grad()
        dpo(Pairs(side(best), side(1 - best)), beta=0.1)[0].mean().backward()
        optimizer.step()
    return logits.detach()


def once(seed: int) -> dict[str, float]:
    figures = {}
    for name, logits in {"base": BASE, **{score: learned(score, seed) for score in VALUE}}.items():
        figures[f"kept, {name}"], figures[f"contradicted, {name}"] = expected(logits)
    return figures


@pytest.fixture(scope="module")
def figures():
    return measure("apc", "apc", once, CLAIMS, seeds=6)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
