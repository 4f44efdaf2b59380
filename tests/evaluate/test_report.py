"""The page from literal results: whole, escaped, self-contained; and the table over runs."""

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stages.evaluate import figures, report
from stages.evaluate.results import Estimate, Kind, Policy, Results, Reward, Sample

VOID = {"meta", "input", "br", "hr", "img", "link"}
NASTY = '<script>alert("x")</script> & <b>http://evil.example</b> \ud800 \x07'

SAMPLES = [
    Sample(f"prompt {n}", "code", f"before {n}", f"after {n}", {"tone": 0.25}, {"tone": 0.5}, n / 20, 1 - n / 20)
    for n in range(21)
]
RESULTS = Results(
    title="A policy & its baseline",
    settings={"recipe": "simpo", "model": NASTY, "seed": 7, "commit": "abc123"},
    headline={
        "win_rate": Estimate(61.25, 55.5, 66.75),
        "length_controlled_win_rate": Estimate(56.5, 51.0, 62.0),
        "independent_win_rate": Estimate(55.0, 51.0, 59.0),
        "kl": Estimate(4.125, 3.5, 4.75),
        "length": Estimate(1234.0),
        "base_length": Estimate(999.0),
        "k3": Estimate(0.0625),
    },
    passed=True,
    reasons=["61.2 % wins & more"],
    policies=[
        Policy("base", 0.1, 0.0, Estimate(50.0, 45.0, 55.0), 999.0, 1.5, 0.02),
        Policy("optimize", 0.3, 4.125, Estimate(61.25, 55.5, 66.75), 1234.0, 1.25, 0.03),
    ],
    kinds=[Kind("code", 12, Estimate(40.0, 20.0, 60.0)), Kind("<i>story</i>", 9, Estimate(70.0))],
    rewards=[Reward("tone", 0.25, 0.5), Reward("toxicity", 0.1, 0.3, higher=False)],
    samples=[Sample(NASTY, "", NASTY, "", {NASTY: 1.0}, {}, 0.99), *SAMPLES],
    curves=[{"stage": "sft", "step": n, "loss": 3 - n / 10, "note": "text"} for n in range(4)]
    + [{"stage": "sft", "step": 4, "loss": float("nan")}]
    + [{"stage": "optimize", "step": n, "loss": 0.7, "rewards/margins": n / 10} for n in range(4)],
    audit={"pairs": 64, "ties": 0.125, NASTY: NASTY},
)


class Page(HTMLParser):
    """Tags as they open and close; complains where they cross."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.words = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at line {self.getpos()[0]}"

    def handle_data(self, data):
        self.words.append(data)


def page(results: Results, folder: Path) -> Page:
    return Page(report.write(folder, results).read_text(encoding="utf-8"))


def test_page_is_balanced_and_ids_are_its_own(tmp_path):
    found = page(RESULTS, tmp_path)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    targets = {value[1:] for name, value in found.attributes if name in ("href", "xlink:href")}
    assert targets <= set(found.ids)
    assert {value for name, value in found.attributes if name == "for"} <= set(found.ids)


def test_page_loads_nothing_and_runs_nothing(tmp_path):
    found = page(RESULTS, tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(found.tags)
    for name, value in found.attributes:
        assert "http" not in (value or ""), (name, value)
        assert not name.startswith("on"), name
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_text_of_models_is_escaped_everywhere(tmp_path):
    found = page(RESULTS, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<script>alert("x")' not in text
    assert "<i>story</i>" not in text
    shown = "".join(found.words)
    whole = shown.count('<script>alert("x")</script> & <b>http://evil.example</b> ?')
    assert whole >= 6  # a setting, a key and a value of the audit, a sample's prompt, answer and score


def test_page_has_every_section_and_number(tmp_path):
    found = page(RESULTS, tmp_path)
    for section in ("summary", "frontier", "kinds", "rewards", "samples", "curves", "audit", "numbers"):
        assert section in found.ids
    shown = " ".join(" ".join(found.words).split())
    for wanted in ("Passed the gate", "61.2 % wins & more", "before: 999", "0.0625", "abc123"):
        assert wanted in shown
    assert "1\u2009234" in "".join(found.words)
    assert "Read the samples" not in shown
    assert "rewards/margins" in shown
    assert "preferred to the base in 61.2 % of comparisons (55.5 to 66.8)" in shown


def test_bare_results_make_a_page_without_empty_sections(tmp_path):
    found = page(Results("Bare", {}, {}, passed=False, reasons=[]), tmp_path)
    assert "Stopped at the gate" in "".join(found.words)
    assert found.ids == ["summary"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"independent_win_rate": Estimate(48.0, 44.0, 52.0)}, "judge disagrees: 48.0"),
        ({"independent_win_rate": Estimate(53.0, 49.0, 57.0)}, "no certain gain"),
        ({"length_controlled_win_rate": Estimate(49.0)}, "one of length: 49.0"),
        ({"win_rate": Estimate(45.0), "independent_win_rate": Estimate(55.0)}, "judge disagrees: 55.0"),
        ({"independent_win_rate": Estimate(51.0)}, ""),  # no interval, no claim about it
        ({"independent_win_rate": Estimate(60.0, 0.0, 100.0)}, "no certain gain"),
    ],
)
def test_warnings(changed, told, tmp_path):
    results = replace(RESULTS, headline=dict(RESULTS.headline) | changed)
    told_by = report.warnings(results.headline)
    assert [told in warning for warning in told_by] == ([True] if told else [])
    assert ("Read the samples" in "".join(page(results, tmp_path).words)) == bool(told)


def test_sample_lists_are_sorted_and_the_random_one_ignores_results():
    lists = report.sample_lists(SAMPLES)
    assert [sample.prob for sample in lists["Biggest wins"]] == [n / 20 for n in range(20, 12, -1)]
    assert [sample.prob for sample in lists["Biggest losses"]] == [n / 20 for n in range(8)]
    other = [replace(sample, prob=1 - sample.prob, final="changed") for sample in reversed(SAMPLES)]
    drawn = [sample.prompt for sample in report.sample_lists(other)["Random"]]
    assert drawn == [sample.prompt for sample in lists["Random"]]
    assert all((sample.prob > 0.5) != (sample.independent > 0.5) for sample in lists["Judges disagree"])


def test_data_beside_the_page(tmp_path):
    report.write(tmp_path, RESULTS)
    assert json.loads((tmp_path / "headline.json").read_text())["win_rate"] == {
        "value": 61.25,
        "lower": 55.5,
        "upper": 66.75,
    }
    with (tmp_path / "policies.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["name"], row["kl"], row["win_rate_upper"]) for row in rows] == [
        ("base", "0.0", "55.0"),
        ("optimize", "4.125", "66.75"),
    ]
    with (tmp_path / "curves.csv").open(encoding="utf-8") as lines:
        assert [row["rewards/margins"] for row in csv.DictReader(lines)][-2:] == ["0.2", "0.3"]
    for name in ("frontier.png", "win_rate.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_page_is_the_same_each_time(tmp_path):
    one, other = (report.write(tmp_path / name, RESULTS).read_bytes() for name in ("one", "other"))
    assert one == other


def test_names_of_near_points_do_not_overlap():
    """Five rounds within a hair of each other still get five places."""
    figure = figures.frontier([f"round {n}" for n in range(5)], [1, 1.01, 1.02, 1.03, 5], [1, 1, 1.01, 1, 2], "t")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 5
    for index, box in enumerate(boxes):
        assert not any(box.shrunk(0.8, 0.8).overlaps(other.shrunk(0.8, 0.8)) for other in boxes[:index])


def test_comparison_means_and_spreads(tmp_path):
    rows = [
        {"recipe": "dpo", "seed": 0, "win_rate": 58.0, "kl": 3.0, "length": 1000.0, "independent_win_rate": None},
        {"recipe": "dpo", "seed": 1, "win_rate": 62.0, "kl": 5.0, "length": 1200.0},
        {"recipe": "simpo", "seed": 0, "win_rate": 64.0, "kl": 7.5, "length": 900.0},
    ]
    path = report.comparison(rows, tmp_path)
    assert path.read_text(encoding="utf-8").splitlines() == [
        "| Recipe | Seeds | Win rate, % | KL, nats | Length, characters |",
        "|---|---:|---:|---:|---:|",
        "| simpo | 1 | 64.00 | 7.50 | 900.00 |",
        "| dpo | 2 | 60.00 \u00b1 2.83 | 4.00 \u00b1 1.41 | 1\u2009100.00 \u00b1 141.42 |",
    ]
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "comparison.csv").open(encoding="utf-8") as lines:
        assert [row["seed"] for row in csv.DictReader(lines)] == ["0", "1", "0"]


def test_comparison_by_several_columns(tmp_path):
    rows = [
        {"recipe": "rdpo", "label.flip": flip, "seed": seed, "win_rate": 60.0 - 50 * float(flip) + seed}
        for flip in ("0", "0.2")
        for seed in (0, 1)
    ]
    path = report.comparison(rows, tmp_path, ("recipe", "label.flip"))
    assert path.read_text(encoding="utf-8").splitlines() == [
        "| Recipe | label.flip | Seeds | Win rate, % |",
        "|---|---|---:|---:|",
        "| rdpo | 0 | 2 | 60.50 \u00b1 0.71 |",
        "| rdpo | 0.2 | 2 | 50.50 \u00b1 0.71 |",
    ]


CREDIT = [("The", 0.5), (" sky", -0.25), (f" {NASTY}", -2.0), ("\n\nis", 0.0), ("", 1.0)]


def test_tokens_stand_in_the_colour_of_their_credit(tmp_path):
    """Beside the largest of either sign, 2: 0.25, 0.125, 1, 0 and 0.5 of the opacity of 0.6; the least is framed."""
    credited = replace(SAMPLES[0], credit=CREDIT)
    found = page(replace(RESULTS, samples=[credited, *SAMPLES[1:]]), tmp_path)
    assert "credit" in found.ids
    spans = [(name, value) for name, value in found.attributes if name == "style" and "--a:" in value][2:]
    assert spans == [("style", f"--a:{shade}") for shade in ("0.15", "0.07", "0.60", "0.00", "0.30")]
    classes = [value for name, value in found.attributes if name == "class" and value.split()[0] in ("up", "down")]
    assert classes[2:] == ["up", "down", "down least", "up", "up"]
    assert [v for name, v in found.attributes if name == "title"] == ["+0.50", "−0.25", "−2.00", "0.00", "+1.00"]
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">The</span><span" in text, "nothing between tokens that the answer does not have"
    assert '<script>alert("x")' not in text
    with (tmp_path / "credit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["place"], row["token"], float(row["credit"])) for row in rows[:2]] == [
        ("0", "The", 0.5),
        ("1", " sky", -0.25),
    ]


def test_credit_of_a_policy_that_is_its_base_is_no_colour(tmp_path):
    told = report.shaded([("a", 0.0), ("b", 0.0)])
    assert {(token.shade, token.least) for token in told} == {(0.0, False)}
    assert report.shaded([]) == []
    assert page(RESULTS, tmp_path).ids.count("credit") == 0, "no tokens, no section"
