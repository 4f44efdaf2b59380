"""Evaluating image policies: prices at the same draws, the numbers, and the page with its pictures."""

import base64
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from stages import feed, images
from stages.batches import Item
from stages.config import Run
from stages.evaluate import answers, gather, measures, pictures, report
from stages.evaluate.results import Estimate, Kind, Policy, Results, Reward, Sample
from stages.panel import Panel, Tools
from stages.parts import Part, Spec
from stages.policies import family
from stages.policies.image import tiny
from stages.records import Completion, Message, Prompt
from tests.evaluate.test_report import RESULTS as TEXT
from tests.evaluate.test_report import page

RUN = Run(family="image", device="cpu", policy={"steps": 3})
LABEL, OTHER = Panel(rewards={"brightness": {}}), Panel(rewards={"compressibility": {}})
METRICS = dict.fromkeys(("win_rate", "score", "surrogate_kl", "image_diversity", "ranking_accuracy"), {})
PROMPTS = [
    Prompt(
        id=f"p{i}", messages=(Message(role="user", content=f"a handwritten {name}"),), kind="odd" if i % 2 else "even"
    )
    for i, name in enumerate(("zero", "one", "two", "three"))
]
DRAW = Part("sampler", "draw", lambda policy, prompts, k, seed: policy.sample(prompts, k, seed=seed), Spec())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two untrained pipelines: what all is held against, and another one."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", "optimize")):
        tiny.pipeline(root / name, seed=seed)
    return root / "base", root / "optimize"


def everyone(models, scratch: Path, run: Run = RUN, prompts: list[Prompt] = PROMPTS, k: int = 1):
    """What the stage does with the base and the final policy, two draws an answer."""
    folders = answers.chain(*models)
    drawn = answers.sample(folders, (DRAW, {}), None, prompts, run, scratch, k=k, draws=2)
    base = family.load(run, models[0])
    found = []
    for name, folder in folders:
        told = answers.price_drawn(base if name != "base" else None, prompts, drawn[name], 2, name)
        found.append(answers.compare(name, folder, prompts, drawn[name], drawn["base"], told, (LABEL, OTHER), Tools()))
    return found


def test_an_answer_is_priced_by_the_mean_over_its_draws(models, tmp_path):
    """By hand, one draw at a time: both policies see the same noise, and more draws are another number."""
    run = RUN.model_copy(update={"policy": {"steps": 3, "levels": 2}})
    policy = family.load(run, models[1])
    told = policy.sample(PROMPTS, 1, seed=0)
    price = answers.price(policy, PROMPTS, told, 3, "price")
    for prompt, candidate, found in zip(PROMPTS, told, price, strict=True):
        shown = Completion(image=candidate.image)
        drawn = [
            policy.log_probs([Item("any", prompt.messages, shown, candidate.id + later)]).logp
            for later in ("", "~1", "~2")
        ]
        assert found == pytest.approx([float(torch.stack(drawn).mean())], rel=1e-5)
    once = answers.price(policy, PROMPTS, told, 1, "price")
    assert sum(once, []) != pytest.approx(sum(price, []), rel=1e-3)


def test_held_out_pairs_are_priced_at_the_same_draws_on_both_sides(models, tmp_path):
    base, final = (family.load(RUN, folder) for folder in models)
    found = everyone(models, tmp_path)
    pairs = answers.held_out_pairs(PROMPTS, found, 0.1)
    assert len(pairs) == len(PROMPTS)
    assert all(pair.chosen.score > pair.rejected.score for pair in pairs)
    rows = answers.pair_columns(pairs, base, final, Tools(), 2)
    by_hand = [feed.price(final, feed.items(pairs[0], draw)).logp.detach() for draw in range(2)]
    wanted = torch.stack(by_hand).mean((0, 2)).tolist()
    assert [rows["chosen_logp"][0], rows["rejected_logp"][0]] == pytest.approx(wanted, rel=1e-5)
    assert set(rows["chosen_steps"]) == {1}
    same = answers.pair_columns(pairs, base, base, Tools(), 2)
    assert measures.measure({"ranking_accuracy": {}}, same)["ranking_accuracy/reward_accuracy"] == 0.5
    one_side = pairs[0].model_copy(update={"rejected": pairs[0].chosen})
    told = answers.pair_columns([one_side], base, final, Tools(), 2)
    assert told["chosen_logp"] == told["rejected_logp"]


def test_trajectories_are_priced_and_pictures_without_one_are_left_out(models, tmp_path):
    run = RUN.model_copy(update={"policy": {"steps": 3, "likelihood": "trajectory"}})
    given = tuple(Completion(image=images.encode(torch.full((1, 8, 8), v)), score=v) for v in (0.0, 1.0))
    prompts = [prompt.model_copy(update={"given": given}) for prompt in PROMPTS]
    found = everyone(models, tmp_path, run, prompts)
    assert found[0].logp == found[0].ref_logp
    assert found[1].logp != found[1].ref_logp
    pairs = answers.held_out_pairs(prompts, found, 0.1)
    assert all(pair.chosen.latents for pair in pairs)
    base, final = (family.load(run, folder) for folder in models)
    rows = answers.pair_columns(pairs, base, final, Tools(), 2)
    assert rows["chosen_logp"] != rows["chosen_ref"]


@pytest.fixture(scope="module")
def evaluated(models, tmp_path_factory):
    """Numbers and results of a run with two answers a prompt."""
    folder = tmp_path_factory.mktemp("run")
    for name, content in {"label/audit": {"pairs": 4}, "optimize/settings": {"optimize": {}}}.items():
        file = folder / f"data/{name}.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = everyone(models, folder / "scratch", k=2)
        columns = answers.columns(found[-1], found[0])
        columns["scores"] = answers.scores(found[-1], found[0], PROMPTS, OTHER, Tools())
        numbers = measures.measure(METRICS, columns)
        reasons = measures.gate(measures.Gate(), numbers)
        results = gather.gather(RUN, "optimize", (LABEL, OTHER), METRICS, PROMPTS, found, numbers, reasons)
    return found, numbers, results


def test_the_numbers_of_image_policies(evaluated):
    found, numbers, results = evaluated
    base, final = found
    assert len(final.every) == 2 * len(final.candidates) == 8
    bright = [[images.decode(c.image).mean().item() for c in one.every] for one in found]
    before, after = (sum(row) / len(row) for row in bright)
    assert numbers["score/brightness"] == pytest.approx(after, abs=1e-6)
    assert numbers["score/brightness/difference"] == pytest.approx(after - before, abs=1e-6)
    for reward in ("brightness", "compressibility"):
        at = f"score/{reward}/difference"
        assert numbers[f"{at}/lower"] < numbers[at] < numbers[f"{at}/upper"]
    gaps = [a - b for (a,), (b,) in zip(final.logp, final.ref_logp, strict=True)]
    assert numbers["surrogate_kl"] == pytest.approx(sum(gaps) / len(gaps))
    assert numbers["surrogate_kl"] != 0
    assert 0 < numbers["image_diversity/within"] < 2
    assert not {"kl", "length", "drift"} & set(numbers)
    assert [row.name for row in results.policies] == ["base", "optimize"]
    assert results.policies[0].kl == 0
    assert results.policies[0].diversity == numbers["image_diversity/base"]
    assert {row.name: row.independent for row in results.rewards} == {"brightness": False, "compressibility": True}
    assert [(kind.name, kind.n) for kind in results.kinds] == [("even", 2), ("odd", 2)]


def test_the_page_of_image_policies(evaluated, tmp_path):
    found, _, results = evaluated
    shown = page(results, tmp_path)
    assert shown.open == []
    for section in ("summary", "frontier", "kinds", "rewards", "gallery", "samples", "audit"):
        assert section in shown.ids
    sources = [value for name, value in shown.attributes if name == "src"]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    own = {f"data:image/png;base64,{c.image}" for one in found for c in one.every}
    assert set(sources) == own  # what is small enough is embedded as it is, every answer of every prompt
    words = " ".join(" ".join(shown.words).split())
    for wanted in ("a handwritten two", "KL surrogate", "Diversity within a prompt", "Best by score", "made no label"):
        assert wanted in words
    for text_only in ("nats per answer", "characters", "Repetition", "Entropy"):
        assert text_only not in words
    assert not {"script", "link", "iframe", "object", "form"} & set(shown.tags)
    assert "kl" in (tmp_path / "policies.csv").read_text().splitlines()[0].split(",")
    assert [set(row) & {"before", "after"} for row in gather.table(results.samples)] == [set()] * 4


def test_the_text_page_has_no_picture(tmp_path):
    shown = page(TEXT, tmp_path)
    assert not {"img", "figure"} & set(shown.tags)
    assert "gallery" not in shown.ids
    assert pictures.sheets(tmp_path, TEXT.samples) == []


def sample(name: str, value: float, side: int = 8, k: int = 1) -> Sample:
    shown = [images.encode(torch.full((3, side, side), v)) for v in (value, -value)]
    return Sample(name, "", "", "", {}, {}, 0.5, None, [shown[0]] * k, [shown[1]] * k, value)


def test_grids_show_the_same_prompts_at_the_same_places(tmp_path):
    samples = [sample(f"prompt {i}", i / 10) for i in range(-9, 10)]
    one, other = pictures.sheets(tmp_path, samples)
    assert (one.name, other.name) == ("before.png", "after.png")
    with Image.open(one) as before, Image.open(other) as after:
        assert before.size == after.size == (8 * 68 + 4, 3 * 68 + 4)
        for place in range(19):
            at = (36 + 68 * (place % 8), 36 + 68 * (place // 8))
            assert before.getpixel(at)[0] + after.getpixel(at)[0] == pytest.approx(255, abs=1)  # v and -v


def test_grids_keep_the_answers_of_a_prompt_together():
    assert pictures.rows([["a", "b", "c"], ["d"], ["e", "f"]]) == [["a", "b", "c", "d", "", ""], ["e", "f", ""]]
    assert len(pictures.rows([["a"]] * 1000)) == pictures.DOWN


def test_large_pictures_are_shrunk_and_small_ones_keep_their_pixels(tmp_path):
    tag = str(pictures.embed(images.encode(torch.zeros(3, 600, 300)), "Final"))
    data = tag.partition("base64,")[2].partition('"')[0]
    (tmp_path / "shown.png").write_bytes(base64.b64decode(data))
    with Image.open(tmp_path / "shown.png") as shown:
        assert shown.size == (128, 256)
    assert 'class="fine"' in tag
    assert 'class="coarse"' in pictures.embed(images.encode(torch.zeros(1, 8, 8)), "Final")
    assert "<b>" not in pictures.embed(images.encode(torch.zeros(1, 8, 8)), '"><b>')


def test_lists_of_pictures_begin_with_the_ends_of_the_score():
    lists = report.sample_lists([sample(f"prompt {i}", i / 10) for i in range(10)])
    assert list(lists)[:2] == ["Best by score", "Worst by score"]
    assert [s.score for s in lists["Best by score"]] == [i / 10 for i in range(9, 1, -1)]
    assert [s.score for s in lists["Worst by score"]] == [i / 10 for i in range(8)]


def test_a_policy_that_draws_nothing_has_an_empty_side(tmp_path):
    blank = Sample("p", "k", "", "", {}, {"verifier": 1.0}, 1.0, 0.5, [], [images.encode(torch.zeros(1, 8, 8))], 1.0)
    results = Results(
        "Pictures",
        {},
        {"win_rate": Estimate(60.0)},
        passed=True,
        reasons=[],
        policies=[Policy("base", 0.1, 0.0, Estimate(50.0), diversity=0.2)],
        kinds=[Kind("k", 1, Estimate(50.0), 0.1, 0.2)],
        rewards=[Reward("verifier", 0.5, 0.6)],
        samples=[blank],
        family="image",
    )
    shown = page(results, tmp_path)
    assert "empty" in "".join(shown.words)
    assert "Labelling rewards" in "".join(shown.words)
