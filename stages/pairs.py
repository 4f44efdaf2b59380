"""Pairs of scored candidates: which two make one, what the record says, and what judges change of it."""

from __future__ import annotations

from collections.abc import Mapping

from stages.errors import UserError, nearest
from stages.labelling import TIE, both_orders, sigmoid
from stages.panel import Panel, Tools, seats
from stages.parts import Spec
from stages.records import Candidate, Completion, Pair, Prompt, Single


def spec(rewards: Mapping[str, Spec], key: str, where: str) -> Spec:
    """What the reward of a key declares.

    Raises:
        UserError: the panel has none.
    """
    if key not in rewards:
        mend = nearest(key, list(rewards))
        raise UserError(f"no reward on the panel has the key '{key}'", where=where, mend=mend)
    return rewards[key]


def ordered(candidates: list[Candidate]) -> list[tuple[Candidate, Candidate]]:
    """All (winner, loser) that make a pair: different answers, different scores, neither of them blank.

    Blank answers have no token to learn from; they still count among those that a winner beats.
    """
    able = [(c, c.score) for c in candidates if c.score is not None and not c.blank]
    return [(one, two) for one, s in able for two, t in able if s > t + TIE and one.content != two.content]


def make_pair(
    prompt: Prompt, winner: Candidate, loser: Candidate, candidates: list[Candidate], temperature: float
) -> Pair:
    """The preference of `winner` over `loser` with what objectives may need of the scores s.

        margin = s_w - s_l        prob = sigmoid(margin / temperature)
        rate_i = mean_j sigmoid((s_i - s_j) / temperature) over all scored candidates, j = i included at 1/2

    The rates are SPPO's win rates (arXiv 2405.00675); with K candidates they lie in [1/(2K), 1 - 1/(2K)]. The pair is
    named `<prompt id>/<winner's k>-<loser's k>`.
    """
    assert winner.score is not None
    assert loser.score is not None
    others = [c.score for c in candidates if c.score is not None]
    chosen, rejected = (
        sum(sigmoid((mine - other) / temperature) for other in others) / len(others)
        for mine in (winner.score, loser.score)
    )
    number = [c.id.rpartition("/")[2] for c in (winner, loser)]
    return Pair(
        id=f"{prompt.id}/{number[0]}-{number[1]}",
        messages=prompt.messages,
        chosen=completion(winner),
        rejected=completion(loser),
        prob=sigmoid((winner.score - loser.score) / temperature),
        margin=winner.score - loser.score,
        chosen_rate=chosen,
        rejected_rate=rejected,
    )


def completion(candidate: Candidate) -> Completion:
    """A candidate as it stands in a preference."""
    kept = ("text", "finished", "tokens", "logps", "image", "latents", "score")
    return Completion(**{name: getattr(candidate, name) for name in kept})


def demonstrations(prompts: list[Prompt], candidates: list[Candidate]) -> list[Single]:
    """The best-scored candidate of each prompt that has one to learn from."""
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        held = best.get(candidate.prompt)
        if not candidate.blank and (held is None or (candidate.score or 0.0) > (held.score or 0.0)):
            best[candidate.prompt] = candidate
    return [
        Single(id=best[p.id].id, messages=p.messages, completion=completion(best[p.id]), label=True)
        for p in prompts
        if p.id in best
    ]


def rejudge(
    panel: Panel,
    prompts_by_id: dict[str, Prompt],
    pairs: list[Pair],
    tools: Tools,
    *,
    orders: dict[str, list[tuple[float, float]]] | None = None,
) -> list[Pair]:
    """Pairs whose `prob` the judges have a say in, by weight; untouched where there is no judge.

    Where the mix falls below 1/2 the two sides change places and the margin changes sign, so that it stays the score
    of chosen minus the score of rejected. Win rates follow their side; they stay those of the scores.

    Args:
        panel: its judges are asked; all rewards together weigh as much as their weights' sum.
        prompts_by_id: where the judges read the question.
        pairs: as `make_pair` made and named them.
        tools: what the judges need.
        orders: filled with (P(chosen) shown first, P(chosen) shown second) of every pair by judge, for the audit.
    """
    judges = [seat for seat in seats(panel, "judge") if seat.weight]
    prompts = [prompts_by_id[pair.id.rpartition("/")[0]] for pair in pairs]
    chosen, rejected = ([_shown(p, x, side) for p, x in zip(prompts, pairs)] for side in ("chosen", "rejected"))
    total = weight = sum(seat.weight for seat in seats(panel, "reward"))
    mix = [weight * pair.prob for pair in pairs]
    for seat in judges:
        said = both_orders(seat, prompts, chosen, rejected, tools)
        mix = [m + seat.weight * (a + b) / 2 for m, (a, b) in zip(mix, said, strict=True)]
        total += seat.weight
        if orders is not None:
            orders[seat.key] = said
    return [_reweighed(pair, min(m / total, 1.0)) for pair, m in zip(pairs, mix, strict=True)] if judges else pairs


def _shown(prompt: Prompt, pair: Pair, side: str) -> Candidate:
    """One side of a pair as a judge takes it."""
    given = getattr(pair, side)
    return Candidate(
        id=f"{pair.id}/{side}", prompt=prompt.id, text=given.text, finished=given.finished, image=given.image
    )


def _reweighed(pair: Pair, prob: float) -> Pair:
    """The pair with a new probability, its sides swapped where that is below 1/2."""
    if prob >= 0.5:
        return pair.model_copy(update={"prob": prob})
    swapped = {"chosen": pair.rejected, "rejected": pair.chosen, "margin": -pair.margin, "prob": 1 - prob}
    rates = {"chosen_rate": pair.rejected_rate, "rejected_rate": pair.chosen_rate}
    return pair.model_copy(update={**swapped, **rates})
