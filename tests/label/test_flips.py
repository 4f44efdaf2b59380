"""Labels turned round on purpose: how many, which, and what stays."""

import pytest

from stages import preferences
from stages.errors import UserError
from stages.pairs import make_pair
from stages.records import Pair, Ranking, Single
from tests.label.world import candidate, prompt


def pairs(n: int) -> list[Pair]:
    made = []
    for i in range(n):
        two = [candidate("good", 0, of=f"p{i}", score=0.9), candidate("bad", 1, of=f"p{i}", score=0.4)]
        made.append(make_pair(prompt(f"p{i}"), *two, two, 0.1))
    return made


def test_a_flipped_pair_is_told_the_other_way_round() -> None:
    """Same id, probability, margin and rates; each completion keeps its score, which tells the truth."""
    (before,) = pairs(1)
    (after,), turned = preferences.flip([before], 1.0, seed=0)
    assert turned == [before.id]
    assert (after.chosen, after.rejected) == (before.rejected, before.chosen)
    assert after.chosen.score < after.rejected.score
    kept = ("id", "messages", "prob", "margin", "chosen_rate", "rejected_rate")
    assert all(getattr(after, name) == getattr(before, name) for name in kept)


def test_no_flips_change_nothing() -> None:
    made = pairs(20)
    assert preferences.flip(made, 0.0, seed=0) == (made, [])


def test_the_share_is_met_and_the_ids_are_those_that_changed() -> None:
    """2,000 flips at 0.3 lie within four deviations, 0.041."""
    made = pairs(2000)
    told, turned = preferences.flip(made, 0.3, seed=0)
    assert [one.id for one, other in zip(made, told) if one != other] == [p.id for p in made if p.id in set(turned)]
    assert len(turned) / len(made) == pytest.approx(0.3, abs=0.041)
    assert len(told) == len(made)


def test_a_sweep_of_shares_flips_more_and_never_others() -> None:
    """Each preference by itself: neither its neighbours nor the share decide its draw; the seed does."""
    made = pairs(200)
    shares = [set(preferences.flip(made, share, seed=0)[1]) for share in (0.1, 0.2, 0.4)]
    assert shares[0] < shares[1] < shares[2]
    assert set(preferences.flip(made[::2], 0.4, seed=0)[1]) == shares[2] & {p.id for p in made[::2]}
    assert set(preferences.flip(made, 0.4, seed=1)[1]) != shares[2]


def test_singles_change_their_label_and_rankings_are_refused() -> None:
    (pair,) = pairs(1)
    good = Single(id="s", messages=pair.messages, completion=pair.chosen, label=True)
    assert preferences.flip([good], 1.0, seed=0)[0][0].label is False
    ranking = Ranking(id="r", messages=pair.messages, completions=(pair.chosen, pair.rejected))
    assert preferences.flip([ranking], 0.0, seed=0)[0] == [ranking]
    with pytest.raises(UserError, match="label.flip: a ranking has no label to flip; choose a pairing"):
        preferences.flip([ranking], 1.0, seed=0)
