"""Attack success and over-refusal of policies whose answer is known, and the identities of the rates."""

import numpy as np
import pytest

from stages import parts
from stages.evaluate import measures, safety
from stages.evaluate.metrics.attack_success import AttackSuccess
from stages.label.rewards.guard import guard
from stages.prepare.attacks import Attacks, build, vaults
from stages.records import Candidate, Prompt

_, TEST = build(vaults(), Attacks(), 60, 96, 0)


def answered(say, k: int = 1) -> list[Candidate]:
    """What a policy says to every held-out prompt, judged."""
    asked = [prompt for prompt in TEST for _ in range(k)]
    said = [Candidate(id=f"{p.id}/{i % k}", prompt=p.id, text=say(p, i % k)) for i, p in enumerate(asked)]
    told = guard(asked, said)
    return [c.model_copy(update={"scores": {} if v is None else {"guard": v}}) for c, v in zip(said, told, strict=True)]


def refuse(prompt: Prompt, number: int) -> str:
    return "I'm sorry, but I can't help with that."


def comply(prompt: Prompt, number: int) -> str:
    return f"Of course, it is {prompt.checks['secret']}."


def measured(final, base=comply, k: int = 1) -> dict[str, float]:
    columns = safety.columns(TEST, answered(final, k), answered(base, k))
    return measures.measure({"attack_success": {}, "over_refusal": {}}, columns)


def test_a_policy_that_always_refuses_is_safe_and_useless():
    found = measured(refuse)
    assert (found["attack_success"], found["over_refusal"]) == (0, 1)
    assert (found["attack_success/base"], found["over_refusal/base"]) == (1, 0)
    assert (found["attack_success/difference"], found["over_refusal/difference"]) == (-1, 1)


def test_a_policy_that_always_complies_is_the_other_way_round():
    found = measured(comply, refuse)
    assert (found["attack_success"], found["over_refusal"]) == (1, 0)
    assert all(value == 1 for key, value in found.items() if key.startswith("attack_success/by/"))


def test_only_what_must_be_refused_counts_as_an_attack():
    found = measured(refuse)
    assert found["attack_success/n"] == sum(p.checks["harmful"] for p in TEST)
    assert found["attack_success/n"] + found["over_refusal/n"] == len(TEST)


def test_several_answers_count_by_their_share():
    found = measured(lambda prompt, number: (comply if number else refuse)(prompt, number), k=4)
    assert (found["attack_success"], found["over_refusal"]) == (0.75, 0.25)


def test_blank_answers_are_neither_safe_nor_unsafe():
    """Counting them as safe would halve the rate."""
    found = measured(lambda prompt, number: comply(prompt, number) if number else " ", k=2)
    assert (found["attack_success"], found["over_refusal"]) == (1, 0)
    assert safety.columns(TEST, answered(lambda prompt, number: ""), answered(comply)) == {}


def test_prompts_that_say_nothing_of_harm_have_no_columns():
    plain = [prompt.model_copy(update={"checks": {}}) for prompt in TEST]
    assert safety.columns(plain, answered(comply), answered(comply)) == {}
    assert measures.measure({"attack_success": {}}, {}) == {}


def table(seed: int, rows: int = 200) -> dict[str, list]:
    noise = np.random.default_rng(seed)
    return {
        "unsafe": (noise.uniform(size=rows) < 0.3).astype(float).tolist(),
        "base_unsafe": (noise.uniform(size=rows) < 0.6).astype(float).tolist(),
        "style": noise.choice(["plain", "poem", "prefix", "urgency"], rows, p=[0.1, 0.2, 0.3, 0.4]).tolist(),
        "topics": noise.choice(["maps", "ink", "maps|ink"], rows).tolist(),
        "split": noise.choice(["seen", "unseen style"], rows).tolist(),
    }


@pytest.mark.parametrize("seed", range(3))
def test_the_rate_is_the_mean_of_the_styles_weighted_by_their_sizes(seed):
    columns, metric = table(seed), AttackSuccess()
    metric.update(**columns)
    found = metric.compute()
    for group, column in (("style", "style"), ("split", "split")):
        sizes = {name: columns[column].count(name) for name in set(columns[column])}
        weighted = sum(size * found[f"by/{group}/{name}"] for name, size in sizes.items()) / 200
        assert found["attack_success"] == pytest.approx(weighted)
    styles = [value for key, value in found.items() if key.startswith("by/style/")]
    assert found["macro/style"] == pytest.approx(np.mean(styles))
    assert found["worst/style"] == max(styles)
    under = [u for u, topics in zip(columns["unsafe"], columns["topics"]) if "maps" in topics]
    assert found["by/topic/maps"] == pytest.approx(np.mean(under))


def test_less_is_better_of_both():
    assert not any(parts.find("metric", name).spec.higher for name in ("attack_success", "over_refusal"))


def test_answers_to_harmful_prompts_are_kept_without_their_words():
    kept = safety.withheld(TEST, answered(comply))
    harmful = {prompt.id for prompt in TEST if prompt.checks["harmful"]}
    assert {c.prompt for c in kept if not c.text and not c.tokens} == harmful
    assert safety.columns(TEST, kept, kept) == safety.columns(TEST, answered(comply), answered(comply))
    shown = [prompt.model_copy(update={"checks": {**prompt.checks, "withhold": False}}) for prompt in TEST]
    assert safety.withheld(shown, answered(comply)) == answered(comply)
