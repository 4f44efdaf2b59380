"""AWM on the digits: the pretraining loss weighed by advantages, against Flow-GRPO from as many images."""

import pytest

from tests.claims import digits, runs
from tests.claims.claim import Claim, measure

CLAIMS = (
    Claim("AWM is ahead of Flow-GRPO at equal images and a learning rate of 3e-4", "awm, 3e-4", "flow-grpo, 3e-4"),
    Claim("AWM is ahead of Flow-GRPO at equal images and a learning rate of 1e-4", "awm, 1e-4", "flow-grpo, 1e-4"),
    Claim(
        "Half of the images take AWM as far as all take Flow-GRPO, to 0.05",
        "awm, 3e-4, half the images",
        "flow-grpo, 3e-4",
        margin=-0.05,
    ),
    Claim("AWM is ahead with the uniform weight as well", "awm, uniform", "flow-grpo, 3e-4"),
    Claim("AWM is ahead with samples of the ODE as well", "awm, from the ode", "flow-grpo, 3e-4"),
    Claim("A KL term holds AWM back", "awm, 3e-4", "awm, kl"),
    Claim("A KL term keeps more of the quality", "own, awm, kl", "own, awm, 3e-4"),
)


def awm(seed: int, *, rate: float = 3e-4, weight: str = "ghuber", beta: float = 0.0, noise: float = 0.7) -> runs.Every:
    """Twenty rounds of 80 images, one update each; looks at half and at the end."""
    settings = {"levels": 6, "weight": weight, "noise_level": noise}
    policy, reference = (digits.policy(seed, "flow", **settings) for _ in range(2))
    every = runs.Every(policy, 10, 20, steps=20, eta=0.0)
    advantage = {"name": "group", "std": "batch"}
    told = {"learning_rate": rate, "advantage": advantage, "watch": every, "beta": beta}
    runs.live(policy, reference, "awm", seed=seed, rounds=20, **told)
    return every


def once(seed: int) -> dict[str, float]:
    told = {"base": runs.flowed(digits.policy(seed, "flow"))["brightness"]}
    for rate in ("1e-4", "3e-4"):
        after = runs.flowed(runs.flow_grpo(seed, learning_rate=float(rate)))
        told |= {f"flow-grpo, {rate}": after["brightness"], f"own, flow-grpo, {rate}": after["own"]}
    arms = {
        "awm, 1e-4": awm(seed, rate=1e-4),
        "awm, 3e-4": awm(seed),
        "awm, uniform": awm(seed, weight="uniform"),
        "awm, from the ode": awm(seed, noise=0.0),
        "awm, kl": awm(seed, beta=0.5),  # the card's 0.1, whose advantages are divided by 5
    }
    for name, every in arms.items():
        told |= {name: every.seen[20]["brightness"], f"own, {name}": every.seen[20]["own"]}
    told["awm, 3e-4, half the images"] = arms["awm, 3e-4"].seen[10]["brightness"]
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("awm", "awm", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
