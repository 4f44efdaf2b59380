"""One battery for every sampler, found by name, on a tiny real policy of its family; then what each promises."""

import math
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch

from stages import parts
from stages.errors import UserError
from stages.labelling import mixed
from stages.panel import Panel
from stages.policies.image import Policy as ImagePolicy
from stages.policies.image import Settings as ImageSettings
from stages.policies.image import tiny as image
from stages.records import Candidate, Completion, Prompt
from tests.label.world import prompt, tools

OTHER = {
    "temperature": {"temperature": 0.2, "top_p": 0.3, "max_new_tokens": 3},
    "best_of_n": {"n": 2, "temperature": 0.2, "top_p": 0.3, "max_new_tokens": 3},
    "rejection": {"n": 3, "beta": 0.0, "temperature": 0.2, "top_p": 0.3, "max_new_tokens": 3},
    "greedy": {"max_new_tokens": 3},
    "beam": {"beams": 16, "max_new_tokens": 3},
    "revise": {"revisions": 2, "temperature": 0.2, "top_p": 0.3, "max_new_tokens": 3},
    "denoise": {"steps": 2, "eta": 0.0, "guidance": 3.0},
}
SAMPLERS = parts.names("sampler")
LIMIT = {"max_new_tokens": 8}
PROMPTS = [
    prompt(name, text, given=[Completion(text=f"{text} {i}", score=i) for i in range(5)])
    for name, text in [("a", "Say something."), ("b", "Say more, and take your time."), ("c", "Hm?")]
]


class Die:
    """A real policy of six answers that can be enumerated: the loaded die of `weights`, one step an answer."""

    def __init__(self, *weights: float) -> None:
        self.logits = torch.tensor(weights).log()

    def sample(
        self, prompts: list[Prompt], k: int, *, seed: int, temperature: float, top_p: float, max_new_tokens: int
    ):
        draws = torch.Generator().manual_seed(seed)
        p = (self.logits / temperature).softmax(0)
        rolled = torch.multinomial(p, len(prompts) * k, replacement=True, generator=draws).reshape(len(prompts), k)
        return [
            Candidate(id=f"{prompt.id}/{i}", prompt=prompt.id, text=str(int(face)), finished=True)
            for prompt, row in zip(prompts, rolled)
            for i, face in enumerate(row)
        ]


@cache
def denoiser() -> ImagePolicy:
    """An untrained UNet that draws 8 x 8 grey pictures in four steps."""
    with TemporaryDirectory() as name:
        image.pipeline(Path(name), blocks=(8, 8), width=8, prediction_type="v_prediction")
        return ImagePolicy.load(Path(name), ImageSettings(steps=4))


def policy_of(part: parts.Part) -> Any:
    """A policy of the first family that the part serves."""
    return denoiser() if part.spec.families == ("image",) else tools().policy


def face_value(prompts: list[Prompt], candidates: list[Candidate]) -> list[float]:
    return [float(c.text) for c in candidates]


def draw(
    name: str, policy: Any = None, prompts: list[Prompt] | None = None, k: int | None = None, seed: int = 0, **settings
):
    part = parts.find("sampler", name)
    given = {"score": mixed(Panel(rewards={"reward_model": {}}), tools())} if "scores" in part.spec.needs else {}
    limits = {key: value for key, value in LIMIT.items() if key in part.settings}
    k = k or (1 if name == "greedy" else 3)
    return part.function(policy or policy_of(part), prompts or PROMPTS, k, seed, **{**given, **limits, **settings})


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_gives_k_of_each_prompt_in_order(name):
    k = 1 if name == "greedy" else 3
    found = draw(name)
    assert [c.id for c in found] == [f"{p.id}/{i}" for p in PROMPTS for i in range(k)]
    assert [c.prompt for c in found] == [p.id for p in PROMPTS for _ in range(k)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_repeats_itself_and_ignores_its_neighbours(name):
    found = draw(name, seed=7)
    assert all(c.content for c in found)
    assert [c.content for c in found] == [c.content for c in draw(name, seed=7)]
    backwards = {c.id: c.content for c in draw(name, prompts=PROMPTS[::-1], seed=7)}
    assert {c.id: c.content for c in found} == backwards


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_follows_its_seed_unless_it_leaves_nothing_to_chance(name):
    same = [c.content for c in draw(name, seed=1)] == [c.content for c in draw(name, seed=2)]
    assert same == (name in {"beam", "greedy", "given"})


@pytest.mark.parametrize(("name", "setting"), [(n, s) for n in SAMPLERS for s in parts.find("sampler", n).settings])
def test_sampler_setting_changes_a_result(name, setting):
    """At the defaults, or where all other settings have their other value."""
    rest = {key: value for key, value in OTHER[name].items() if key != setting}
    found = [[c.content for c in draw(name, **settings)] for settings in ({}, {setting: OTHER[name][setting]})]
    if found[0] == found[1]:
        found = [[c.content for c in draw(name, **settings)] for settings in (rest, OTHER[name])]
    assert found[0] != found[1]


def test_temperature_one_is_the_policy_itself():
    found = Counter(c.text for c in draw("temperature", Die(1, 2, 5), k=4000))
    assert [found[str(i)] / 12000 for i in range(3)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.015)


def test_greedy_is_the_most_likely_continuation():
    (one,) = draw("greedy", prompts=PROMPTS[:1])
    policy = tools().policy
    ids = policy.encode_prompt(PROMPTS[0].messages)
    for token in one.tokens:
        with torch.no_grad():
            assert int(policy.model(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids = [*ids, token]


def test_greedy_refuses_to_repeat_itself():
    with pytest.raises(UserError, match="4 greedy answers"):
        draw("greedy", k=4)


def test_best_of_one_is_the_policy_itself():
    plain = draw("temperature", seed=5)
    assert [(c.id, c.text) for c in draw("best_of_n", seed=5, n=1)] == [(c.id, c.text) for c in plain]


@pytest.mark.parametrize("n", [2, 4])
def test_best_of_n_follows_its_exact_distribution_and_kl_bound(n):
    """With faces sorted by score and F their cumulative probability, P(face) = F(face)^n - F(face - 1)^n."""
    weights = [3.0, 1.0, 2.0, 2.0]
    p = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    cdf = p.cumsum(0)
    exact = cdf**n - (cdf - p) ** n
    found = Counter(c.text for c in draw("best_of_n", Die(*weights), k=4000, n=n, score=face_value))
    assert [found[str(i)] / 12000 for i in range(4)] == pytest.approx(exact.tolist(), abs=0.015)
    assert float((exact * (exact / p).log()).sum()) <= math.log(n) - (n - 1) / n


def test_best_of_n_beats_one_draw_n_times_in_n_plus_one():
    """On a die of so many faces that ties are rare: 2/3 for n = 2 and 4/5 for n = 4."""
    die = Die(*[1.0] * 2000)
    for n in (2, 4):
        best = draw("best_of_n", die, k=2000, seed=1, n=n, score=face_value)
        one = draw("temperature", die, k=2000, seed=2)
        wins = sum(float(b.text) > float(o.text) for b, o in zip(best, one)) / len(one)
        assert wins == pytest.approx(n / (n + 1), abs=0.015)


def test_best_of_n_ignores_an_increasing_change_of_the_score():
    plain = draw("best_of_n", Die(1, 1, 1, 1), score=face_value)
    bent = draw("best_of_n", Die(1, 1, 1, 1), score=lambda p, c: [math.exp(5 * x) - 3 for x in face_value(p, c)])
    assert plain == bent


def test_given_keeps_images():
    ask = prompt("a", "a red circle", given=[Completion(image="iVBOR")])
    assert [c.image for c in draw("given", prompts=[ask], k=1)] == ["iVBOR"]


def test_given_takes_the_first_k_with_their_scores_and_names_an_empty_prompt():
    found = draw("given", prompts=PROMPTS[:1], k=9)
    assert [(c.text, c.scores) for c in found] == [(f"Say something. {i}", {"given": float(i)}) for i in range(5)]
    with pytest.raises(UserError, match="prompt z: came with no completions"):
        draw("given", prompts=[prompt("z")])
