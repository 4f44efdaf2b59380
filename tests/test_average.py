"""The moving average of a policy and the pull towards it, against a slow float64 twin."""

import copy

import pytest
import torch
from torch.func import functional_call

from stages import images
from stages.average import Average
from stages.config import Choice
from stages.errors import UserError
from stages.learn import Optimize
from stages.online import Online
from stages.optimize.run import Settings, check
from stages.panel import Tools
from stages.policies.image import seeds
from stages.updates import SampledUpdates, divergence
from tests.image.test_policy import SHAPE, Small, bare, gradient, ids, sampled
from tests.test_online import PROMPTS, configured, learn, weights

PULL = {"ema_beta": 5.0}


def moved(policy, by: float = 0.05):
    """The same policy with other weights, which its own seeded noise moved."""
    noise = torch.Generator().manual_seed(3)
    for weight in policy.parameters().values():
        weight.data += by * torch.randn(weight.shape, generator=noise, dtype=weight.dtype)
    return policy


def learner(policy, behind: Average | None, reference=None, *, beta: float = 0.0, **asked) -> SampledUpdates:
    """A step of AWM on brightness."""
    online = Online(rewards={"brightness": {}}, num_generations=4, **asked)
    settings = Optimize(objective=Choice(name="awm", beta=beta), online=online, per_device_train_batch_size=3)
    made = SampledUpdates(policy, reference or bare("flow", levels=2), settings, Tools(), 4, behind)
    made.begin(PROMPTS[:3], 0)
    return made


# -------------------------------------------------------------------------------------------------- the average


def test_it_follows_by_the_formula():
    """A weight that goes 0, 1, 3, 7: d = 0.001, 0.002 and from 300 updates on 0.3."""
    policy = bare()
    weight = next(iter(policy.parameters().values()))
    weight.data.zero_()
    behind = Average(policy)
    followed = next(iter(behind.weights.values()))
    wanted = 0.0
    for update, value, d in ((1, 1.0, 0.001), (2, 3.0, 0.002), (300, 7.0, 0.3), (5000, -1.0, 0.3)):
        weight.data.fill_(value)
        behind.follow(update)
        wanted = d * wanted + (1 - d) * value
        assert followed.flatten()[0].item() == pytest.approx(wanted, rel=1e-12)
    assert weight.flatten()[0].item() == -1.0


def test_it_has_no_gradient_and_is_kept_beside_the_policys_weights():
    policy = bare()
    behind = Average(policy)
    names = list(policy.parameters())
    assert list(behind.parameters()) == [*names, *(f"average/{name}" for name in names)]
    assert [p.requires_grad for p in behind.parameters().values()] == [True] * len(names) + [False] * len(names)
    before = weights(policy)
    moved(policy)
    assert all(torch.equal(behind.weights[name], value) for name, value in before.items()), "no weight is shared"


# -------------------------------------------------------------------------------------------------- the divergence


def test_independent_reference():
    """AWM's second divergence: the mean over levels and pixels of (v_theta - v_ema)^2 at the levels that a draw seeds.

    Value and gradient, in float64, from the bare modules.
    """
    policy = bare("flow", levels=3)
    other = moved(copy.deepcopy(policy))
    items = sampled(policy)
    where, noise, _ = seeds.levels([item.draw for item in items], 3, SHAPE)
    s = policy.schedule.draw(where.flatten())[1].view(where.shape).double()
    module, ema = Small(), {name: p.detach() for name, p in other.model.named_parameters()}
    wanted = []
    for i, item in enumerate(items):
        x0, terms = images.decode(item.completion.image).double(), []
        for j in range(3):
            x = ((1 - s[i, j]) * x0 + s[i, j] * noise[i, j].double())[None]
            given = (x, 1000 * s[i, j][None], ids([item.messages[-1].content]))
            terms.append((module(*given) - functional_call(Small(), ema, given)).square().mean())
        wanted.append(torch.stack(terms).mean())
    slow = torch.stack(wanted)
    found = divergence(policy, other, items)
    torch.testing.assert_close(found.double(), slow, rtol=1e-5, atol=1e-9)
    slopes = torch.autograd.grad(slow.mean(), list(module.parameters()), materialize_grads=True)
    torch.testing.assert_close(
        gradient(policy, found.mean()), torch.cat([slope.flatten() for slope in slopes]), rtol=1e-5, atol=1e-9
    )


def test_it_is_added_to_every_prompts_loss():
    policy = bare("flow", levels=2)
    behind = Average(policy)
    moved(policy)
    plain, pulled = learner(policy, None), learner(policy, behind, **PULL)
    loss, _ = plain.loss(PROMPTS[:3], 0)
    more, stats = pulled.loss(PROMPTS[:3], 0)
    away = divergence(policy, behind.copy, pulled.held["p0,p1,p2"].samples.items).view(3, 4).mean(1)
    assert (away > 0).all()
    torch.testing.assert_close(more, loss + 5 * away)
    torch.testing.assert_close(stats["ema_kl"], away.detach())
    torch.testing.assert_close(gradient(policy, more.sum()), gradient(policy, (loss + 5 * away).sum()))


def test_without_an_advantage_the_pull_alone_moves_and_at_the_average_nothing_does():
    """Advantages are all 0 where all rewards are: AWM's invariant."""
    for by in (0.0, 0.05):
        policy = bare("flow", levels=2)
        behind, reference = Average(policy), bare("flow", levels=2)
        moved(policy, by)
        made = learner(policy, behind, reference, beta=0.5, **PULL)
        samples = made.held["p0,p1,p2"].samples
        samples.advantage = torch.zeros_like(samples.reward)
        found = gradient(policy, made.loss(PROMPTS[:3], 0)[0].mean())
        kls = 0.5 * divergence(policy, reference, samples.items) + 5 * divergence(policy, behind.copy, samples.items)
        torch.testing.assert_close(found, gradient(policy, kls.mean()))
        assert bool((found != 0).any()) is (by > 0)


# -------------------------------------------------------------------------------------------------- learning with it


def run(tmp_path, name: str = "awm", epochs: int = 2, **asked):
    policy = bare("flow") if name == "awm" else bare("flow", likelihood="trajectory", trajectory_steps="all")
    rows = learn(policy, tmp_path, configured(name, asked, num_train_epochs=epochs))
    return weights(policy), rows


@pytest.mark.parametrize("name", ["awm", "flow_grpo"])
def test_the_first_update_is_at_the_average_and_later_ones_are_not(tmp_path, name):
    plain, pulled = run(tmp_path / "a", name)[1], run(tmp_path / "b", name, ema_beta=100.0)[1]
    assert pulled[0]["ema_kl"] == 0
    assert all(row["ema_kl"] > 0 for row in pulled[1:])
    assert pulled[0]["loss"] == plain[0]["loss"]
    assert pulled[-1]["grad_norm"] != plain[-1]["grad_norm"]
    assert "ema_kl" not in plain[0]


@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, killed_after):
    settings = configured("awm", {"ema_beta": 100.0}, num_train_epochs=2)
    whole, resumed = bare("flow"), bare("flow")
    rows = learn(whole, tmp_path / "a", settings)
    with pytest.raises(KeyboardInterrupt):
        learn(bare("flow"), tmp_path / "b", settings, stop_after=killed_after)
    assert learn(resumed, tmp_path / "b", settings) == rows
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize("name", ["ddpo", "draft"])
def test_an_objective_without_a_divergence_refuses_it(name):
    online = {"rewards": {"brightness": {}}, **PULL}
    node = {"run": {"family": "image"}, "optimize": {"objective": {"name": name}, "online": online}}
    with pytest.raises(UserError, match=f"params.yaml optimize.online.ema_beta: objective '{name}' measures no diver"):
        check(Settings.model_validate(node))
    node["optimize"]["objective"]["name"] = "awm"
    check(Settings.model_validate(node))
