"""Which columns a metric gets, which metrics fit a family, and what the gate says."""

import pytest

from stages.errors import UserError
from stages.evaluate.measures import Gate, check, gate, measure


def test_a_metric_of_another_family_is_one_line():
    with pytest.raises(UserError) as error:
        check({"win_rate": {}, "drift": {}}, "image")
    told = "params.yaml evaluate.metrics.drift: metric 'drift' does not fit the family 'image'; it fits text,"
    assert str(error.value).startswith(told)
    check({"win_rate": {}, "score": {}, "surrogate_kl": {}, "image_diversity": {}, "ranking_accuracy": {}}, "image")
    check({"win_rate": {}, "score": {}, "kl": {}, "drift": {}, "diversity": {}, "ranking_accuracy": {}}, "text")
    with pytest.raises(UserError, match="'image_diversity' does not fit the family 'text'"):
        check({"image_diversity": {}}, "text")


def test_the_score_is_taken_of_every_reward():
    sides = {"verifier": {"score": [1.0, 3.0], "base_score": [0.0, 1.0]}, "mute": {"score": [], "base_score": []}}
    found = measure({"score": {}}, {"scores": sides})
    assert [found[f"score/verifier{key}"] for key in ("", "/base", "/difference")] == [2.0, 0.5, 1.5]
    assert found["score/verifier/difference/lower"] < 1.5 < found["score/verifier/difference/upper"]
    assert not any("mute" in key for key in found)


def test_the_gate_knows_the_surrogate():
    fine = {"win_rate": 60.0, "win_rate/lower": 55.0, "surrogate_kl": 0.01}
    assert gate(Gate(), fine) == []
    assert gate(Gate(max_surrogate_kl=0.001), fine) == ["the KL surrogate is 0.01, above 0.001"]
