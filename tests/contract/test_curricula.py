"""One battery for all curricula, found by name: what the contract promises of any of them."""

import inspect
import random

import pytest

from stages import parts
from stages.records import Pair

CURRICULA = parts.names("curriculum")
every = pytest.mark.parametrize("name", CURRICULA)
OTHER = {"easy_to_hard": {"phases": 2, "scope": "all"}}  # another value of each setting, and nothing else


def pairs(prompts: int = 7, most: int = 4, seed: int = 0) -> list[Pair]:
    """One to `most` pairs of each prompt with random margins, prompts mixed."""
    rng = random.Random(seed)
    made = [
        Pair(
            id=f"p{p}/0-{k}",
            messages=({"role": "user", "content": f"question {p}"},),
            chosen={"text": "yes"},
            rejected={"text": f"no {k}"},
            margin=rng.choice([0.1, 0.2, 0.5, 0.9]) * (1 + p),
        )
        for p in range(prompts)
        for k in range(1 + p % most)
    ]
    return rng.sample(made, len(made))


@every
def test_spec_and_signature_follow_the_contract(name: str) -> None:
    found = parts.find("curriculum", name)
    parameters = list(inspect.signature(found.function).parameters.values())
    text = inspect.getdoc(found.function) or ""
    assert found.spec.paper
    assert [p.name for p in parameters] == ["examples", *found.settings], "settings are keyword-only and have defaults"
    assert all(words in text for words in ("Differences from the paper:", "Source:", f">>> {name}("))
    assert all(f"\n    {setting}: " in text for setting in found.settings)
    assert set(OTHER.get(name, {})) == set(found.settings)


@every
@pytest.mark.parametrize("seed", range(5))
def test_each_example_is_in_one_phase_and_no_phase_is_empty(name: str, seed: int) -> None:
    examples = pairs(seed=seed)
    for settings in [{}, *({key: value} for key, value in OTHER[name].items())]:
        found = parts.find("curriculum", name).function(examples, **settings)
        assert sorted(i for phase in found for i in phase) == list(range(len(examples)))
        assert all(found)


@every
def test_it_is_a_function_of_the_examples_and_not_of_their_order(name: str) -> None:
    examples, function = pairs(), parts.find("curriculum", name).function
    mixed = random.Random(1).sample(examples, len(examples))
    found, again = function(examples), function(mixed)
    assert found == function(examples)
    told = [{examples[i].id for i in phase} for phase in found]
    assert told == [{mixed[i].id for i in phase} for phase in again]


@pytest.mark.parametrize(("name", "setting"), [(n, s) for n in CURRICULA for s in parts.find("curriculum", n).settings])
def test_every_setting_changes_the_phases(name: str, setting: str) -> None:
    function = parts.find("curriculum", name).function
    assert function(pairs(), **{setting: OTHER[name][setting]}) != function(pairs())
