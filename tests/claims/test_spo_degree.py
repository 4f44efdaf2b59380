"""SPO of preference degrees beside DPO on a tiny language model: what states know of degrees, and what it is worth.

Key phrases are the words that a prompt wants, in an order of importance that is drawn by lot. Degrees are read off the
winners of unseen pairs that want enough words for all four copies to differ, so that chance is 1/4.
"""

from dataclasses import replace

import pytest
import torch

from stages.optimize.objectives.spo_degree import init, spo_degree
from tests.claims import toys
from tests.claims.claim import Claim, measure

UPDATES, FEW = 300, 40
GAMMAS = (0.1, 1.0)
CLAIMS = (
    Claim(
        "After joint training the states of unseen winners tell the degree far above chance",
        "degree, gamma 1.0",
        0.25,
        margin=0.2,
    ),
    Claim("At gamma 0.1 too", "degree, gamma 0.1", 0.25, margin=0.08),
    Claim(
        "They tell it better than the reference's states do to a head that learned as long",
        "degree, gamma 1.0",
        "degree, reference",
        margin=0.15,
    ),
    Claim("At gamma 0.1 too: better than the reference's", "degree, gamma 0.1", "degree, reference", margin=0.04),
    Claim(
        "Trained on as many words of any kind they tell nothing: it is not the length of a copy",
        "degree, gamma 1.0, any words",
        0.25,
        within=0.06,
    ),
    Claim(
        "On as many unwanted words they tell less, though without those the wanted ones stand out",
        "degree, gamma 1.0",
        "degree, gamma 1.0, unwanted words",
        margin=0.1,
    ),
    Claim("Texts at gamma 0.1 are as good as DPO's", "quality, gamma 0.1", "quality, dpo", margin=-0.03),
    Claim("With 40 pairs as well", "quality, 40 pairs, gamma 0.1", "quality, 40 pairs, dpo", margin=-0.03),
    Claim("Gamma 1 stays closer to the reference than DPO, in nats a text", "kl, dpo", "kl, gamma 1.0"),
    Claim(
        "Texts at gamma 0.1 are better than DPO's",
        "quality, gamma 0.1",
        "quality, dpo",
        tried="150 pairs and gamma 0.1, 0.5 and 1, by 120, 300 and 400 updates: the same but for noise, at less KL",
    ),
    Claim(
        "With few pairs they are better than DPO's",
        "quality, 40 pairs, gamma 0.1",
        "quality, 40 pairs, dpo",
        tried="40 pairs, of texts up to 14 tokens and up to 24 (0.417 against 0.420, gamma 1: 0.398; four seeds)",
    ),
)


def ranked(data: toys.Data, seed: int, kind: str) -> toys.Data:
    """The data with ranks of key phrases: the wanted words of each text in random order, or as many of other kinds."""
    texts, noise = data.texts, torch.Generator().manual_seed(seed)
    words = texts.mask & (texts.tokens != toys.END)
    key = words & (texts.tokens == (texts.prompt % toys.WORDS + 1)[..., None])
    count = key.sum(-1, keepdim=True)
    among = {"wanted": key, "unwanted": words & ~key, "any": words}[kind]
    place = torch.where(among, torch.rand(key.shape, generator=noise), 2.0).argsort(-1).argsort(-1) + 1
    return replace(data, key_rank=torch.where(among & (place <= count), place / count.clamp(min=1), torch.inf))


def once(seed: int) -> dict[str, float]:
    base = toys.tuned(seed)
    pairs, unseen = toys.drawn(base, 150, 1000 + seed), toys.drawn(base, 2000, 5000 + seed)
    wanted = toys.counts(unseen.texts)[0][:, 0]
    unseen = unseen[(wanted >= 3) & (unseen.texts.words[:, 0] >= 2 * wanted)]  # as many others, and a word that is left
    told: dict[str, float] = {}

    def learned(name: str, gamma: float, data: toys.Data, frozen: bool = False, kind: str = "wanted") -> None:
        model = toys.tuned(seed).requires_grad_(not frozen)
        data, held_out = (ranked(each, seed, kind) for each in (data, unseen))
        head = {n: v.requires_grad_() for n, v in init(toys.batch("Pairs", base, data[:1], hidden=True)).items()}
        few = {"updates": 120, "size": FEW} if len(data) <= FEW else {"updates": UPDATES, "size": 64}
        toys.learn(model, "spo_degree", data, seed=seed, head=head, gamma=gamma, beta=0.1, **few)
        with torch.no_grad():
            priced = toys.batch("Pairs", model, held_out, base, hidden=True)
            stats = spo_degree(priced, head=head)[1]
        told[f"degree, {name}"] = float(stats["degree/accuracies"].sum() / stats["degree/told"].sum())
        if not frozen:
            told.update({f"{figure}, {name}": value for figure, value in toys.look(model, base).items()})

    learned("reference", 1.0, pairs, frozen=True)
    for kind in ("any", "unwanted"):
        learned(f"gamma 1.0, {kind} words", 1.0, pairs, kind=kind)
    for count, data in (("", pairs), (f"{FEW} pairs, ", pairs[:FEW])):
        learned(f"{count}dpo", 0.0, data)  # bit for bit what DPO does
        for gamma in GAMMAS:
            learned(f"{count}gamma {gamma}", gamma, data)
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("spo-degree", "spo_degree", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
