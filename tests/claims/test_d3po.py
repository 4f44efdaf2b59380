"""D3PO on the digits: DPO on single denoising steps, told only which of two images is brighter."""

import pytest

from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

ROUNDS, STEPS = 25, 9  # a trajectory of ten steps has nine that are random

CLAIMS = (
    Claim(
        "D3PO gains at least 40% of what DDPO gains from as many images, their true rewards and half the updates",
        "share of ddpo",
        0.4,
    ),
    Claim("D3PO brightens above the base", "d3po", "base", margin=0.05),
    Claim(
        "D3PO gains that with as few updates as DDPO",
        "share of ddpo, 2 updates",
        0.4,
        tried="2 updates a round as DDPO instead of 4; each round starts AdamW anew, which the card's loop does not",
    ),
    Claim("The quality guard falls by less than 0.3", "own, d3po", "own, base", margin=-0.3),
    Claim("With the clip of the authors' code it gains at least 40% of that too", "share of ddpo, clip", 0.4),
    Claim(
        "At three times the learning rate the clip keeps more of the quality",
        "own, d3po, clip, 3e-4",
        "own, d3po, 3e-4",
    ),
)


def d3po(seed: int, updates: int = 4, **chosen) -> dict[str, float]:
    """Each round: two images of a prompt from one start, the brighter preferred, some updates on random steps."""
    settings = {"likelihood": "trajectory", "shared_start": True}
    policy, reference = digits.policy(seed, **settings), digits.policy(seed, **settings)
    asked = digits.prompts(40)  # four pairs of each digit
    for number in range(ROUNDS):
        two = policy.sample(asked, 2, seed=seed + 1_000_003 * (number + 1))
        pairs = runs.paired("best_worst", asked, runs.scored(two, asked), seed)
        # a pair is priced at one random step a draw: its copies are priced at others
        copies = [pair.model_copy(update={"id": f"{pair.id}#{number}.{n}"}) for pair in pairs for n in range(STEPS)]
        settled = {"seed": seed + number, "steps": updates, "batch": len(copies), "beta": 0.1, **chosen}
        runs.offline(policy, reference, copies, "dpo", **settled)
    return digits.look(policy)


def once(seed: int) -> dict[str, float]:
    base, ddpo = digits.look(digits.policy(seed)), runs.ddpo(seed)[ROUNDS * 80]
    told = {"base": base["brightness"], "ddpo": ddpo["brightness"], "own, base": base["own"], "own, ddpo": ddpo["own"]}
    arms = {
        "": {},
        ", 2 updates": {"updates": 2},
        ", clip": {"clip": 0.1},
        ", 3e-4": {"learning_rate": 3e-4},
        ", clip, 3e-4": {"clip": 0.1, "learning_rate": 3e-4},
    }
    for name, chosen in arms.items():
        after = d3po(seed, **chosen)
        gain = (after["brightness"] - base["brightness"]) / (ddpo["brightness"] - base["brightness"])
        told |= {f"d3po{name}": after["brightness"], f"own, d3po{name}": after["own"], f"share of ddpo{name}": gain}
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("d3po", "dpo", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
