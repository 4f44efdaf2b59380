"""SimPO beside DPO on pairs of a tiny policy's own samples, judged by raters who like length, over DPO's settings."""

import pytest

from tests.claims import toys
from tests.claims.claim import Claim, measure

BETAS, RATES = (0.02, 0.1, 0.5), (1e-3, 3e-3)
CLAIMS = (
    Claim("SimPO's texts are better than DPO's at beta 0.1", "quality, simpo", "quality, dpo 0.1"),
    Claim("SimPO's texts are better than DPO's at beta 0.5", "quality, simpo", "quality, dpo 0.5", margin=0.1),
    Claim(
        "With the better of two learning rates for both, SimPO beats DPO at the best of three betas",
        "quality, simpo, best",
        "quality, dpo, best",
    ),
    Claim("Without its margin SimPO gains less", "quality, simpo", "quality, simpo without margin"),
    Claim("SimPO moves further from the policy that it starts from", "kl, simpo", "kl, dpo 0.1"),
    Claim(
        "At its first learning rate SimPO beats all DPO that went no further than it",
        "quality, simpo",
        "quality, dpo, no further",
        tried="a beta of 0.02 gives DPO more quality for less KL",
    ),
    Claim(
        "SimPO's texts are no longer than DPO's at beta 0.1",
        "length, dpo 0.1",
        "length, simpo",
        margin=-0.5,
        tried="margins of 0 and 1: a mean log-prob does not reward length, and the raters do",
    ),
    Claim(
        "With raters who decide by chance more often SimPO still beats DPO at beta 0.1",
        "quality, simpo, noisy raters",
        "quality, dpo 0.1, noisy raters",
        tried="raters of sharpness 2 instead of 5: it learns length before quality",
    ),
)


def once(seed: int) -> dict[str, float]:
    base = toys.tuned(seed)
    pairs = {
        note: toys.drawn(base, 4000, 1000 * seed + 100, length_bias=0.05, sharpness=sharpness)
        for note, sharpness in {"": 5.0, ", noisy raters": 2.0}.items()
    }

    def look(objective: str, note: str = "", **settings) -> dict[str, float]:
        return toys.look(toys.learn(toys.tuned(seed), objective, pairs[note], seed=seed, **settings), base)

    swept = {(beta, rate): look("dpo", beta=beta, rate=rate) for beta in BETAS for rate in RATES}
    ours = {rate: look("simpo", beta=2.0, gamma=1.0, rate=rate) for rate in RATES}
    named = {
        "start": toys.look(base),
        "simpo": ours[RATES[0]],
        "simpo without margin": look("simpo", beta=2.0, gamma=0.0),
        "simpo, best": best(list(ours.values())),
        **{f"dpo {beta}": swept[beta, RATES[0]] for beta in BETAS},
        "dpo, best": best(list(swept.values())),
        "dpo, no further": best([one for one in swept.values() if one["kl"] <= ours[RATES[0]]["kl"]]),
        "simpo, noisy raters": look("simpo", ", noisy raters", beta=2.0, gamma=1.0),
        "dpo 0.1, noisy raters": look("dpo", ", noisy raters", beta=0.1),
    }
    return {f"{figure}, {name}": value for name, told in named.items() for figure, value in told.items()}


def best(looks: list[dict[str, float]]) -> dict[str, float]:
    """The figures of the policy with the highest quality."""
    return max(looks, key=lambda told: told["quality"])


@pytest.fixture(scope="module")
def figures():
    return measure("simpo", "simpo", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
