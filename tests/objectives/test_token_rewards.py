"""DPO's policy as a Q-function (arXiv 2404.12358), on trees small enough for the optimum: what token credit rests on.

Q(s,a) = r(s,a) + beta * log ref(a|s) + V(s')        V(s) = beta * logsumexp_a Q(s,a) / beta
pi(a|s) = exp((Q(s,a) - V(s)) / beta)                beta * log (pi / ref)(a|s) = r(s,a) + V(s') - V(s)
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from stages.batches import Pairs
from stages.optimize.objectives.dpo import dpo
from stages.policies.tabular import Tabular
from stages.policies.text.beam import likeliest
from tests.objectives.build import minimize

G, ACTIONS, DEPTH, BETA = 3, 3, 3, 0.7
LEAVES = ACTIONS**DEPTH


@dataclass(frozen=True)
class Soft:
    """The optimum, by level: values of the states `[g,n]` and policy of their actions `[g,n,a]`."""

    value: list[Tensor]
    policy: list[Tensor]

    def leaves(self) -> Tensor:
        """Log-prob of every leaf `[g,leaves]`."""
        found = torch.zeros(G, 1, dtype=torch.float64)
        for level in self.policy:
            found = (found[..., None] + level.log()).flatten(1)
        return found


def solve(reward: list[Tensor], reference: list[Tensor]) -> Soft:
    """Backward recursion from leaves of value 0; rewards and log-probs of the reference by level, `[g,n,a]`."""
    value, policy = [torch.zeros(G, LEAVES, dtype=torch.float64)], []
    for own, ref in zip(reversed(reward), reversed(reference), strict=True):
        q = own + BETA * ref + value[0].view_as(own)
        value.insert(0, BETA * (q / BETA).logsumexp(-1))
        policy.insert(0, ((q - value[0][..., None]) / BETA).exp())
    return Soft(value, policy)


def world(seed: int = 0) -> tuple[Tabular, list[Tensor], list[Tensor]]:
    """A reference, its log-probs by level, and rewards by level."""
    noise = torch.Generator().manual_seed(seed)
    reward = [torch.randn(G, ACTIONS**d, ACTIONS, generator=noise, dtype=torch.float64) for d in range(DEPTH)]
    reference = Tabular.random(G, ACTIONS, DEPTH, seed=seed + 1)
    return reference, levels(reference), reward


def levels(policy: Tabular) -> list[Tensor]:
    """Its log-probs of every action by level: those of leaves that begin with it are the same."""
    told = every(policy).unflatten(1, (ACTIONS,) * DEPTH)  # [g,a,..,a,t]
    return [told[(..., *[0] * (DEPTH - 1 - d), d)].reshape(G, ACTIONS**d, ACTIONS).detach() for d in range(DEPTH)]


def every(policy: Tabular) -> Tensor:
    """Log-probs of the steps of all leaves: `[g,leaves,t]`."""
    prompts = torch.arange(G).repeat_interleave(LEAVES)
    return policy.log_probs(prompts, policy.enumerate().repeat(G, 1)).view(G, LEAVES, DEPTH)


def path(by_level: list[Tensor]) -> Tensor:
    """Values of the actions on the way to each leaf: `[g,leaves,t]`."""
    return torch.stack(
        [level.flatten(1).repeat_interleave(ACTIONS ** (DEPTH - 1 - d), 1) for d, level in enumerate(by_level)], -1
    )


def optimum(soft: Soft) -> Tabular:
    return Tabular.from_logits(soft.leaves(), vocabulary=ACTIONS, length=DEPTH)


def test_the_optimum_is_a_policy_and_the_reference_tilted_by_the_sum_of_rewards() -> None:
    reference, ref, reward = world()
    soft = solve(reward, ref)
    for level in soft.policy:
        torch.testing.assert_close(level.sum(-1), torch.ones_like(level[..., 0]))
    tilted = (reference.sequence_log_probs() + path(reward).sum(-1) / BETA).log_softmax(-1)
    torch.testing.assert_close(soft.leaves(), tilted.detach())


def test_the_credit_of_a_token_is_its_reward_and_the_change_in_value() -> None:
    reference, ref, reward = world()
    soft = solve(reward, ref)
    credit = BETA * (every(optimum(soft)) - every(reference)).detach()
    shaped = [r + after.view_as(r) - before[..., None] for r, before, after in zip(reward, soft.value, soft.value[1:])]
    torch.testing.assert_close(credit, path(shaped))
    torch.testing.assert_close(credit.sum(-1), path(reward).sum(-1) - soft.value[0])


def test_a_potential_changes_rewards_and_not_the_optimum() -> None:
    _, ref, reward = world()
    noise = torch.Generator().manual_seed(9)
    potential = [torch.randn(G, ACTIONS**d, generator=noise, dtype=torch.float64) for d in range(DEPTH)]
    potential = [0 * potential[0], *potential[1:], torch.zeros(G, LEAVES, dtype=torch.float64)]
    shaped = [r + after.view_as(r) - here[..., None] for r, here, after in zip(reward, potential, potential[1:])]
    torch.testing.assert_close(solve(shaped, ref).leaves(), solve(reward, ref).leaves())


def test_dpo_learns_the_optimum_and_with_it_the_credit() -> None:
    """From all pairs with their exact probabilities: its margins are differences in reward, its steps the shaped ones.

    Its statistics say the same: beta * h of a leaf is the sum of its credit.
    """
    reference, ref, reward = world()
    soft, sums = solve(reward, ref), path(reward).sum(-1)
    policy = Tabular(G, ACTIONS, DEPTH)
    one, other = torch.combinations(torch.arange(LEAVES)).T
    prompts = torch.arange(G).repeat_interleave(len(one))
    sides = [policy.enumerate()[side].repeat(G, 1) for side in (one, other)]
    prob = torch.sigmoid((sums[:, one] - sums[:, other]).flatten())

    def told() -> tuple[Tensor, dict[str, Tensor]]:
        return dpo(Pairs(*(policy.steps(prompts, side, reference) for side in sides), prob=prob), beta=BETA)

    minimize(policy.logits, lambda: told()[0].mean())
    torch.testing.assert_close(every(policy).detach(), every(optimum(soft)).detach(), atol=1e-5, rtol=0)
    credit = BETA * (every(policy) - every(reference)).detach().sum(-1)
    torch.testing.assert_close(told()[1]["rewards/chosen"].detach(), credit[:, one].flatten())


@pytest.mark.parametrize("seed", range(3))
def test_rewards_of_samples_of_the_reference_fall_by_the_kl(seed: int) -> None:
    """Chosen texts that the reference was fine-tuned on look like its samples."""
    reference, policy = (Tabular.random(G, ACTIONS, DEPTH, seed=s) for s in (seed, seed + 10))
    h = policy.sequence_log_probs() - reference.sequence_log_probs()
    torch.testing.assert_close(reference.expect(h), -reference.kl(policy))
    assert (reference.expect(h) < 0).all()


@pytest.mark.parametrize("beams", [1, 2, 4, LEAVES])
def test_searching_by_likelihood_is_searching_by_value(beams: int) -> None:
    """Beams by the log-prob of the optimum, and beams by rewards so far and the value of what they reached."""
    reference, ref, reward = world()
    soft = solve(reward, ref)
    state = torch.zeros(G, beams, dtype=torch.long)
    depth = [0]

    def advance(parents: Tensor, tokens: Tensor) -> Tensor:
        state[:] = state.gather(1, parents) * ACTIONS + tokens
        depth[0] += 1
        return soft.policy[depth[0]][torch.arange(G)[:, None], state].log()

    first = soft.policy[0][:, 0].log()
    found = likeliest(first, advance, beams=beams, k=1, ends=torch.tensor([]), longest=DEPTH).tokens[:, 0]
    regularized = [r + BETA * log_ref for r, log_ref in zip(reward, ref)]
    for g in range(G):
        pool: list[tuple[float, list[int]]] = [(0.0, [])]
        for d in range(DEPTH):
            further = []
            for gained, said in pool:
                at = sum(token * ACTIONS ** (len(said) - 1 - i) for i, token in enumerate(said))
                for token in range(ACTIONS):
                    further.append((gained + float(regularized[d][g, at, token]), [*said, token], at * ACTIONS + token))
            further.sort(key=lambda one, d=d, g=g: -(one[0] + float(soft.value[d + 1][g, one[2]])))
            pool = [(gained, said) for gained, said, _ in further[:beams]]
        assert found[g].tolist() == pool[0][1]
    if beams == LEAVES:
        best = (path(reward).sum(-1) + BETA * reference.sequence_log_probs()).argmax(-1)
        assert found.tolist() == reference.enumerate()[best].tolist()
