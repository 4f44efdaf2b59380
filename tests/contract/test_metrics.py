"""One battery for all metrics, found by name."""

import inspect
import math

import numpy as np
import pytest
import torch

from stages import images, parts
from stages.errors import UserError

METRICS = parts.names("metric")
ROWS = 12


def table(rows: int = ROWS, seed: int = 0) -> dict[str, list]:
    """Every column of the evaluation table, with wins, losses, draws, ties and repeated words in it."""
    random = np.random.default_rng(seed)
    words = [random.choice(["red", "blue", "a", "of", "sea"], size).tolist() for size in random.integers(9, 20, rows)]
    columns = {name: random.normal(-20, 5, rows) for name in ("logp", "chosen_logp", "rejected_logp")}
    columns |= {name: random.normal(-22, 5, rows) for name in ("ref_logp", "chosen_ref", "rejected_ref")}
    columns |= {name: random.integers(1, 30, rows) for name in ("steps", "chosen_steps", "rejected_steps")}
    columns |= {name: random.integers(10, 90, rows) for name in ("length", "base_length")}
    columns |= {name: random.uniform(0, 1, rows) for name in ("prob", "independent", "predicted", "pair_prob")}
    columns["prob"][0], columns["pair_prob"][:3], columns["predicted"][1] = 0.5, (1.0, 0.5, 0.9), 0.0
    columns["entropy"] = random.uniform(0, 0.3, rows)
    columns |= {name: random.normal(0.5, 0.2, rows) for name in ("score", "base_score")}
    columns |= {name: random.uniform(0, 1, rows) for name in ("unsafe", "base_unsafe", "refused", "base_refused")}
    columns["ref_logp"][0] = columns["logp"][0] + 30  # the reference likes this one far better
    return {name: column.tolist() for name, column in columns.items()} | {
        "text": [" ".join(row) for row in words],
        "base_text": [" ".join(reversed(row)) for row in words],
        "image": pictures(random, rows),
        "base_image": pictures(random, rows),
        "style": random.choice(["plain", "poem", "prefix"], rows).tolist(),
        "topics": random.choice(["maps", "ink", "maps|ink"], rows).tolist(),
        "split": random.choice(["seen", "unseen style"], rows).tolist(),
        "direction": random.choice([-45.0, 0.0, 45.0], rows).tolist(),
        **{name: random.uniform(0, 1, rows).tolist() for name in ("first", "second", "base_first", "base_second")},
        "prompt": [f"prompt {n}" for n in random.integers(0, rows // 2 + 1, rows)],
    }


def pictures(random: np.random.Generator, rows: int) -> list[str]:
    """Noise of 16 x 16 colour pixels."""
    return [images.encode(torch.from_numpy(random.uniform(-1, 1, (3, 16, 16)))) for _ in range(rows)]


def measure(name: str, *tables: dict[str, list], **settings) -> dict[str, float]:
    """Run a metric over tables, one update each."""
    metric = parts.find("metric", name).function(**settings)
    wanted = list(inspect.signature(metric.update).parameters)
    for columns in tables:
        metric.update(**{column: columns[column] for column in wanted})
    return metric.compute()


def rows(columns: dict[str, list], order) -> dict[str, list]:
    return {name: [column[index] for index in order] for name, column in columns.items()}


@pytest.mark.parametrize("name", METRICS)
def test_split_updates_equal_one(name):
    columns = table()
    split = measure(name, rows(columns, range(1)), rows(columns, range(1, 7)), rows(columns, range(7, ROWS)))
    assert split == measure(name, columns)


@pytest.mark.parametrize("name", METRICS)
def test_order_of_rows_changes_nothing(name):
    columns = table()
    shuffled = measure(name, rows(columns, np.random.default_rng(1).permutation(ROWS)))
    assert shuffled == pytest.approx(measure(name, columns), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", METRICS)
def test_arrays_are_taken_like_lists(name):
    columns = table()
    arrays = {key: column if isinstance(column[0], str) else np.array(column) for key, column in columns.items()}
    assert measure(name, arrays) == measure(name, columns)


@pytest.mark.parametrize("name", METRICS)
def test_every_number_changes_something(name):
    """Every column that a metric asks for is used."""
    columns, wanted = table(), inspect.signature(parts.find("metric", name).function.update).parameters
    for column in list(wanted)[1:]:
        other = columns | {column: table(seed=7)[column]}
        assert measure(name, other) != measure(name, columns), column


def settings():
    return [(name, setting) for name in METRICS for setting in parts.find("metric", name).settings]


@pytest.mark.parametrize(("name", "setting"), settings())
def test_every_setting_changes_something(name, setting):
    found = parts.find("metric", name)
    default = found.settings[setting].default
    for value in (default * 2, default / 2, default + 0.2, default + 1):
        try:
            checked = parts.check(found, {setting: type(default)(value)})
        except UserError:
            continue
        if measure(name, table(), **checked) != measure(name, table()):
            return
    pytest.fail("no other value of the setting changed the result")


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("seed", range(5))
def test_values_are_finite_and_in_the_declared_range(name, seed):
    spec = parts.find("metric", name).spec
    found = measure(name, table(seed=seed))
    assert spec.range is not None
    assert spec.range[0] <= found[name] <= spec.range[1]
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    if "lower" in found:  # always around the main value
        assert found["lower"] <= found[name] <= found["upper"]


@pytest.mark.parametrize("name", METRICS)
def test_no_rows_is_a_clear_error(name):
    with pytest.raises(UserError, match=f"metric {name}: no rows"):
        measure(name)
    with pytest.raises(UserError, match=f"metric {name}: no rows"):
        measure(name, table(rows=3) | {key: [] for key in table()})


@pytest.mark.parametrize("name", METRICS)
def test_one_row_works(name):
    found = measure(name, rows(table(), [3]))
    low, high = parts.find("metric", name).spec.range
    assert low <= found[name] <= high
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("name", METRICS)
def test_bad_columns_are_clear_errors(name):
    wanted = list(inspect.signature(parts.find("metric", name).function.update).parameters)[1:]
    if len(wanted) > 1:
        with pytest.raises(UserError, match="unequal length"):
            measure(name, table() | {wanted[0]: table()[wanted[0]][1:]})
    if "text" not in wanted:
        with pytest.raises(UserError, match=f"'{wanted[0]}' has a value that is not finite"):
            measure(name, table() | {wanted[0]: [math.nan] * ROWS})
