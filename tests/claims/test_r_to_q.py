"""What follows where DPO's policy is a Q-function: search by likelihood, credit of single tokens, falling rewards."""

import pytest
import torch
from torch import Tensor

from stages import parts, reduce
from stages.batches import Pairs, Steps
from stages.policies.text.beam import likeliest
from tests.claims import toys
from tests.claims.claim import Claim, measure

TREES, DEPTH, ACTIONS = 24, 4, 3
LEAVES, NODES = ACTIONS**DEPTH, (ACTIONS**DEPTH - 1) // (ACTIONS - 1)  # nodes that something follows, the root first
CLAIMS = (
    Claim("Two beams on a DPO policy find better leaves of a trap tree than sampling", "beams, 2", "sampled", 0.1),
    Claim("Four find better ones than two", "beams, 4", "beams, 2", margin=0.3),
    Claim("Greedy search walks into the trap", "beams, 1", 1.0, within=0.2),
    Claim("Eight beams lose nothing against four", "beams, 8", "beams, 4", margin=-0.05),
    Claim("The word of least credit is the planted mistake", "found, by credit", "found, by chance", margin=0.6),
    Claim("The reference's log-prob finds it less often", "found, by credit", "found, by the reference", margin=0.5),
    Claim("So does the policy's log-prob", "found, by credit", "found, by the policy"),
    Claim(
        "With the end among the suspects credit still finds it more often than the policy's log-prob",
        "found or end, by credit",
        "found or end, by the policy",
        tried="an end costs what the words after it would have earned, so that an early one is a mistake as well",
    ),
    Claim("Rewards of unseen chosen texts fall below 0 in training", "fall of chosen, reference tuned on them", 0.0),
    Claim(
        "They fall further where the reference was fine-tuned on chosen texts",
        "fall of chosen, reference tuned on them",
        "fall of chosen",
    ),
    Claim(
        "Those of rejected texts fall further still",
        "fall of rejected, reference tuned on them",
        "fall of chosen, reference tuned on them",
        margin=0.2,
    ),
)


def once(seed: int) -> dict[str, float]:
    return trees(seed) | mistakes(seed) | falls(seed)


# ---------------------------------------------------------------------------------------------------- trap trees


def trees(seed: int) -> dict[str, float]:
    """Mean reward of what greedy search, sampling and beams find in trees that DPO learned from pairs of leaves.

    A third of the leaves, behind one first action, is worth 1; behind another a single leaf is worth 3.5; all others
    are worth -1.
    """
    noise = torch.Generator().manual_seed(seed)
    values = torch.full((TREES, LEAVES), -1.0).view(TREES, ACTIONS, -1)
    each, order = torch.arange(TREES), torch.rand(TREES, ACTIONS, generator=noise).argsort(-1)
    values[each, order[:, 0]] = 1.0
    values[each, order[:, 1], torch.randint(LEAVES // ACTIONS, (TREES,), generator=noise)] = 3.5
    values = values.flatten(1)
    policy = learned(values, noise)
    mass = along(policy.log_softmax(-1)).sum(-1)  # [g,leaves]
    told = {"sampled": float((mass.exp() * values).sum(-1).mean())}
    for beams in (1, 2, 4, 8):
        leaf = searched(policy, beams)
        told[f"beams, {beams}"] = float(values.gather(-1, leaf[:, None]).mean())
    return told


def learned(values: Tensor, noise: torch.Generator) -> Tensor:
    """Logits `[g,nodes,actions]` of a policy that DPO at beta 1 made of 20,000 pairs of evenly drawn leaves."""
    logits = torch.zeros(TREES, NODES, ACTIONS, requires_grad=True)
    tree = torch.randint(TREES, (20_000,), generator=noise)
    one, other = torch.randint(LEAVES, (2, 20_000), generator=noise)
    wins = torch.rand(20_000, generator=noise) < torch.sigmoid(values[tree, one] - values[tree, other])
    sides = torch.where(wins, one, other), torch.where(wins, other, one)
    dpo, optimizer = parts.find("objective", "dpo").function, torch.optim.Adam([logits], lr=0.05)
    uniform = torch.full((20_000, DEPTH), 1 / ACTIONS).log()
    for _ in range(200):
        table = along(logits.log_softmax(-1))
        chosen, rejected = (Steps(table[tree, leaf], uniform < 0, ref=uniform) for leaf in sides)
        optimizer.zero_grad()
        dpo(Pairs(chosen, rejected), beta=1.0)[0].mean().backward()
        optimizer.step()
    return logits.detach()


def along(table: Tensor) -> Tensor:
    """Values of the actions that lead to each leaf: `[g,nodes,actions] -> [g,leaves,depth]`."""
    actions = torch.arange(LEAVES)[:, None] // ACTIONS ** torch.arange(DEPTH - 1, -1, -1) % ACTIONS
    node, nodes = torch.zeros(LEAVES, dtype=torch.long), []
    for step in range(DEPTH):
        nodes.append(node)
        node = node * ACTIONS + 1 + actions[:, step]
    return table[:, torch.stack(nodes, -1), actions]


def searched(policy: Tensor, beams: int) -> Tensor:
    """The leaf `[g]` that a beam search reaches in every tree."""
    node = torch.zeros(TREES, beams, dtype=torch.long)

    def advance(parents: Tensor, tokens: Tensor) -> Tensor:
        node[:] = node.gather(1, parents) * ACTIONS + 1 + tokens
        return policy[torch.arange(TREES)[:, None], node]

    found = likeliest(policy[:, 0], advance, beams=beams, k=1, ends=torch.tensor([]), longest=DEPTH)
    return (found.tokens[:, 0] * ACTIONS ** torch.arange(DEPTH - 1, -1, -1)).sum(-1)


# ---------------------------------------------------------------------------------------------------- credit


def gain(texts: toys.Texts) -> Tensor:
    """How many more of its words are wanted than forbidden."""
    wanted, forbidden = toys.counts(texts)
    return wanted - forbidden


def mistakes(seed: int) -> dict[str, float]:
    """How often the forbidden word in the place of another stands out, in samples of the reference that had none."""
    reference = toys.pretrained(seed, longest=10)
    pairs = toys.drawn(reference, 4000, 1000 * seed + 500, longest=10, sharpness=1.0, score=gain)
    policy = toys.learn(toys.pretrained(seed, longest=10), "dpo", pairs, seed=seed, updates=150, beta=0.3)
    texts = toys.sample(reference, toys.prompts(4000, seed + 70), seed + 71, longest=10)
    texts = texts[(texts.words >= 4) & (toys.counts(texts)[1] == 0)]
    noise = torch.Generator().manual_seed(seed + 72)
    place = (torch.rand(len(texts.words), generator=noise) * texts.words).long()
    tokens = texts.tokens.scatter(1, place[:, None], (texts.prompt[:, None] + 1) % toys.WORDS + 1)
    planted = toys.Texts(texts.prompt, tokens, texts.mask)
    with torch.no_grad():
        priced = toys.steps(policy, planted, reference)
    assert priced.ref is not None
    signs = {"credit": 0.3 * (priced.logp - priced.ref), "the reference": priced.ref, "the policy": priced.logp}
    suspects = {"found": planted.mask & (tokens != toys.END), "found or end": planted.mask}
    told = {
        f"{among}, by {name}": float((sign.where(mask, torch.inf).argmin(-1) == place).double().mean())
        for among, mask in suspects.items()
        for name, sign in signs.items()
    }
    return told | {"found, by chance": float((1 / planted.words).mean())}


# ---------------------------------------------------------------------------------------------------- rewards


def falls(seed: int) -> dict[str, float]:
    """How far the mean implicit reward of unseen chosen and rejected texts falls below 0 with DPO at beta 0.1."""
    start = toys.tuned(seed)
    pairs, unseen = (toys.drawn(start, 4000, 1000 * seed + salt) for salt in (600, 700))
    tuned = toys.imitate(toys.tuned(seed), pairs.texts[:, 0], seed=seed)
    told = {}
    for name, reference in {"": start, ", reference tuned on them": tuned}.items():
        policy = toys.learn(toys.copy.deepcopy(reference), "dpo", pairs, seed=seed, beta=0.1)
        with torch.no_grad():
            h = reduce.log_ratio(toys.steps(policy, unseen.texts, reference)).mean(0)
        told |= {f"fall of {side}{name}": -0.1 * float(h[k]) for k, side in enumerate(("chosen", "rejected"))}
    return told


@pytest.fixture(scope="module")
def figures():
    return measure("r-to-q", "beam", once, CLAIMS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.sentence)
def test_claim(claim: Claim, figures) -> None:
    assert claim.shows(figures) == (not claim.tried)
