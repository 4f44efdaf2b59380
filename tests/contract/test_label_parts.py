"""One battery for every reward, judge and pairing, found by name."""

import inspect
import random
from dataclasses import replace

import pytest

from stages import declared, labelling, parts
from stages.errors import UserError
from stages.panel import TOOLS, Panel, Tools, seats
from stages.records import Candidate, Pair, Prompt, Ranking, Single
from tests.image import world as images
from tests.label import guarded
from tests.label.world import batch, candidate, prompt, rater, tools

# Another value of each setting, and nothing else: the battery finds out whether it changes something.
OTHER = {
    "reward": {
        "relevance": {"copy_ngram": 50},
        "repetition": {"ngram": 1},
        "completeness": {"open_end": 0.9},
        "length": {"low": 2, "high": 500},
        "given": {"low": -1.0, "high": 5.0},
        "chrf": {"order": 2, "beta": 1.0},
        "reward_model": {"scale": 3.0},
        "rating": {"output": "detail"},
        "digit": {"shift": 1, "half": "second"},
        "verifier": {"partial": False},
    },
    "judge": {"self_pairwise": {"criterion": "shorter", "max_chars": 3}},
    "pairing": {
        "margin_threshold": {"threshold": 0.62},
        "random_pairs": {"count": 3},
        "binary": {"threshold": 0.1},
        "aspect": {"by": "sentiment", "margins": {"length": 0.5}, "count": 3},
        "ranking": {"by": "score", "voters": ["sentiment"]},
        "safe_unsafe": {"guard": "sentiment", "threshold": 0.1},
    },
}
PERSONA = {"persona": ["Mira lives in Paris.", "Mira plays the cello."]}
SECRET = {"harmful": True, "secret": "Paris"}
CHECKS = {
    "apc": PERSONA,
    "delta_apc": PERSONA,
    "guard": SECRET,
}  # what a reward asks of a prompt, where that is not what `batch` has
BARE = {"exact", "format", "given", "chrf", "digit", "verifier", *CHECKS}  # have nothing to say of a bare prompt
REWARDS, JUDGES, PAIRINGS = (parts.names(kind) for kind in ("reward", "judge", "pairing"))
PANEL = declared.of(Panel(rewards={"length": {}, "sentiment": {}, "guard": {}}))
LABELLERS = [(kind, name) for kind in ("reward", "judge") for name in parts.names(kind)]


def settings_of(kind: str) -> list[tuple[str, str]]:
    return [(name, setting) for name in parts.names(kind) for setting in parts.find(kind, name).settings]


def reward(name: str, prompts: list, candidates: list, **settings) -> list[float | None]:
    named = {"output": "honesty"} if name == "rating" else {}
    (seat,) = seats(Panel(rewards={name: images.models_of(name) | named | settings}), "reward")
    held = replace(tools(), scorer=rater()) if name == "rating" else tools()
    return seat.call(held)(prompts, candidates)


def answers(name: str) -> tuple[list[Prompt], list[Candidate]]:
    """What a reward is about: texts, or images."""
    prompts, candidates = batch() if "text" in parts.find("reward", name).spec.families else images.batch()
    checks = CHECKS.get(name)
    return ([one.model_copy(update={"checks": checks}) for one in prompts] if checks else prompts), candidates


def judge(name: str, **settings) -> list[tuple[float, float]]:
    (seat,) = seats(Panel(judges={name: settings}), "judge")
    prompts, candidates = batch()
    return labelling.both_orders(seat, prompts, candidates, candidates[1:] + candidates[:1], tools())


def pair_up(name: str, candidates: list, seed: int = 0, **settings) -> list[Pair | Single | Ranking]:
    part = parts.find("pairing", name)
    handed = {"rewards": PANEL} if "rewards" in part.spec.needs else {}
    return part.function(prompt(), candidates, random.Random(seed), temperature=0.1, **handed, **settings)


def told(score: float | None) -> dict[str, float]:
    return {} if score is None else {"length": score, "sentiment": 0.4 - score**2, "guard": score}


SCORED = [
    candidate(text, i, score=score, scores=told(score))
    for i, (text, score) in enumerate(
        [("b", 0.2), ("a", 0.9), ("a", 0.9), ("c", 0.9), ("d", 0.3), ("", 1.0), ("e", None), (" ", 0.0), ("b", 0.25)]
    )
]


# ---------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize("name", REWARDS)
def test_reward_stays_in_its_declared_range_on_all_answers(name):
    spec = parts.find("reward", name).spec
    found = [value for value in reward(name, *answers(name)) if value is not None]
    assert found
    assert all(spec.range[0] <= value <= spec.range[1] for value in found)
    assert len(set(found)) > 1, "it tells no two answers apart"


@pytest.mark.parametrize("name", REWARDS)
def test_reward_of_one_alone_is_its_reward_in_a_shuffled_batch(name):
    prompts, candidates = answers(name)
    together = reward(name, prompts, candidates)
    order = random.Random(0).sample(range(len(candidates)), len(candidates))
    shuffled = reward(name, [prompts[i] for i in order], [candidates[i] for i in order])
    low, high = parts.find("reward", name).spec.range
    close = max(1e-5, 1e-6 * (high - low))  # float32, and a scale that may be wide
    assert shuffled == pytest.approx([together[i] for i in order], abs=close)
    alone = [reward(name, [p], [c])[0] for p, c in zip(prompts, candidates)]
    assert alone == pytest.approx(together, abs=close)


@pytest.mark.parametrize("name", REWARDS)
def test_reward_of_silence_is_never_the_best(name):
    prompts, candidates = answers(name)
    silent, said = candidates[8], [value for value in reward(name, prompts, candidates) if value is not None]
    value = reward(name, prompts[:1], [silent])[0]
    assert value is None or value < max(said)


@pytest.mark.parametrize("name", REWARDS)
def test_reward_of_a_bare_prompt_is_none_or_in_range(name):
    said = candidate("Paris.") if "text" in parts.find("reward", name).spec.families else images.batch()[1][0]
    value = reward(name, [prompt()], [said])[0]
    low, high = parts.find("reward", name).spec.range
    assert value is None if name in BARE else low <= value <= high


@pytest.mark.parametrize(("name", "setting"), settings_of("reward"))
def test_reward_setting_changes_a_result(name, setting):
    models = {**images.models_of(name, 1), **guarded.models_of(name)}
    other = {setting: {**OTHER["reward"].get(name, {}), **models}[setting]}
    assert reward(name, *answers(name)) != reward(name, *answers(name), **other)


# ---------------------------------------------------------------------------------------------------- judges


@pytest.mark.parametrize("name", JUDGES)
def test_judge_averaged_over_orders_is_antisymmetric(name):
    prompts, candidates = batch()
    others = candidates[1:] + candidates[:1]
    panel = Panel(judges={name: {}})
    there = labelling.compare(panel, prompts, candidates, others, tools())
    back = labelling.compare(panel, prompts, others, candidates, tools())
    assert [a + b for a, b in zip(there, back)] == pytest.approx([1.0] * len(there))
    assert labelling.compare(panel, prompts, candidates, candidates, tools()) == [0.5] * len(candidates)
    assert any(abs(p - 0.5) > 1e-4 for p in there), "it tells no two texts apart"


@pytest.mark.parametrize("name", JUDGES)
def test_judge_of_one_alone_is_its_verdict_in_a_batch(name):
    (seat,) = seats(Panel(judges={name: {}}), "judge")
    prompts, candidates = batch()
    function = seat.call(tools())
    together = function(prompts, candidates, candidates[::-1])
    alone = [function([p], [a], [b])[0] for p, a, b in zip(prompts, candidates, candidates[::-1])]
    assert alone == pytest.approx(together, abs=1e-4)


@pytest.mark.parametrize(("name", "setting"), settings_of("judge"))
def test_judge_setting_changes_a_result(name, setting):
    assert judge(name) != judge(name, **{setting: OTHER["judge"][name][setting]})


# ---------------------------------------------------------------------------------------------------- pairings


@pytest.mark.parametrize("name", PAIRINGS)
def test_pairing_prefers_the_higher_score_and_never_pairs_ties_or_copies(name):
    made = [item for seed in range(20) for item in pair_up(name, SCORED, seed)]
    assert made
    for item in made:
        if isinstance(item, Pair):
            assert item.chosen.score > item.rejected.score
            assert item.chosen.text != item.rejected.text
            if name != "aspect":  # whose margin is that of other rewards
                assert item.margin == item.chosen.score - item.rejected.score > 0
            assert item.prob > 0.5
            assert item.chosen_rate > item.rejected_rate
        elif isinstance(item, Ranking):
            assert [c.score for c in item.completions] == sorted((c.score for c in item.completions), reverse=True)
            assert len({c.text for c in item.completions}) == len(item.completions)
            assert all(c.text.strip() for c in item.completions)
        else:
            assert item.completion.text.strip()


@pytest.mark.parametrize("name", PAIRINGS)
def test_pairing_is_deterministic_and_its_ids_are_unique(name):
    made = pair_up(name, SCORED, 3)
    assert made == pair_up(name, SCORED, 3)
    assert len({item.id for item in made}) == len(made)


@pytest.mark.parametrize("name", PAIRINGS)
@pytest.mark.parametrize("alike", [[], SCORED[:1], [scored.model_copy(update={"score": 0.5}) for scored in SCORED]])
def test_pairing_makes_no_pair_where_nothing_differs(name, alike):
    alike = [c.model_copy(update={"scores": {}}) for c in alike]
    assert not [item for item in pair_up(name, alike) if isinstance(item, Pair | Ranking)]


@pytest.mark.parametrize("name", PAIRINGS)
def test_pairing_ignores_a_constant_shift_of_scores(name):
    shifted = [c if c.score is None else c.model_copy(update={"score": c.score + 0.5}) for c in SCORED]
    sides = [
        [(i.chosen.text, i.rejected.text) for i in pair_up(name, rows, 1) if isinstance(i, Pair)]
        for rows in (SCORED, shifted)
    ]
    assert sides[0] == sides[1]


@pytest.mark.parametrize(("name", "setting"), settings_of("pairing"))
def test_pairing_setting_changes_a_result(name, setting):
    assert pair_up(name, SCORED) != pair_up(name, SCORED, **{setting: OTHER["pairing"][name][setting]})


# ---------------------------------------------------------------------------------------------------- needs


@pytest.mark.parametrize(("kind", "name"), LABELLERS)
def test_part_declares_exactly_the_tools_it_takes(kind, name):
    part = parts.find(kind, name)
    parameters = inspect.signature(part.function).parameters.values()
    taken = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    assert taken == {TOOLS[need] for need in part.spec.needs}


@pytest.mark.parametrize(("kind", "name"), [two for two in LABELLERS if parts.find(*two).spec.needs])
def test_part_says_which_tool_is_missing(kind, name):
    (seat,) = seats(Panel(**{f"{kind}s": {name: {}}}), kind)
    with pytest.raises(UserError, match=f"params.yaml label.{kind}s.{name}: {kind} '{name}' needs the"):
        seat.call(Tools())
