"""From preferences to the batch that an objective takes, with reference log-probs out of a cache (cached.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from stages import revision
from stages.batches import Groups, Item, Pairs, Revisions, Singles, Steps
from stages.cached import Cache
from stages.errors import UserError
from stages.parts import Part
from stages.records import Pair, Ranking, Single
from stages.revision import Revision

if TYPE_CHECKING:
    from stages.policies.family import Policy

Example = Pair | Single | Ranking | Revision
OF_PAIRS = ("Pairs", "Hybrid", "Revisions")  # feedback that is made of pairs, and of nothing else that is labelled


def items(example: Example, draw: int = 0) -> list[Item]:
    """The completions of an example: chosen then rejected, those of a ranking, or the one; of a revision all six.

    Args:
        example: a preference.
        draw: which of its seeded draws prices it; draw 0 bears the plain ids.
    """
    if isinstance(example, Revision):
        return [item for pair in example.pairs for item in items(pair, draw)]
    if isinstance(example, Pair):
        sides = {f"{example.id}:chosen": example.chosen, f"{example.id}:rejected": example.rejected}
    elif isinstance(example, Ranking):
        sides = {f"{example.id}:{i}": completion for i, completion in enumerate(example.completions)}
    else:
        sides = {example.id: example.completion}
    later = f"~{draw}" if draw else ""
    return [Item(name + later, example.messages, side, example.id + later) for name, side in sides.items()]


def at_draws(policy: Policy, wanted: Sequence[Example], draws: int) -> list[Item]:
    """The completions of all examples at each of their draws; once, where the policy takes none."""
    each = range(draws if policy.seeded else 1)
    return [item for example in wanted for draw in each for item in items(example, draw)]


def examples(objective: Part, preferences: Sequence[Example], *, where: str) -> list[Example]:
    """The preferences in the form that an objective takes: a pair serves singles as a good and a bad one.

    Raises:
        UserError: the objective wants pairs and the data is unpaired, or wants what preferences cannot give.
    """
    if objective.feedback in OF_PAIRS:
        pairs = only_pairs(preferences, f"objective '{objective.name}' takes pairs", where=where)
        return [revision.of(pair) for pair in pairs] if objective.feedback == "Revisions" else list(pairs)
    if objective.feedback == "Singles":
        if any(isinstance(p, Ranking) for p in preferences):
            what = f"objective '{objective.name}' takes singles, the labels are rankings"
            raise UserError(what, where=where, mend="choose a pairing that makes pairs or singles")
        unlabelled = next((p.id for p in preferences if isinstance(p, Single) and p.label is None), None)
        if unlabelled:
            raise UserError(f"'{unlabelled}' has no label", where=where, mend="choose the pairing 'binary'")
        return [single for p in preferences for single in (_split(p) if isinstance(p, Pair) else [p])]
    if all(isinstance(p, Ranking) for p in preferences):
        return list(preferences)
    what = f"objective '{objective.name}' takes groups, the labels are pairs or singles"
    raise UserError(what, where=where, mend="choose the pairing 'ranking', or an objective on pairs or singles")


def only_pairs(preferences: Sequence[Example], wish: str, *, where: str) -> list[Pair]:
    """The preferences, all of them pairs.

    Raises:
        UserError: one is not, against somebody's wish.
    """
    pairs = [p for p in preferences if isinstance(p, Pair)]
    if len(pairs) < len(preferences):
        other = next(type(p).__name__.lower() for p in preferences if not isinstance(p, Pair))
        mend = f"choose an objective for a {other}, or a pairing that makes pairs"
        raise UserError(f"{wish}, a label is a {other}", where=where, mend=mend)
    return pairs


def _split(pair: Pair) -> list[Single]:
    return [
        Single(id=item.id, messages=item.messages, completion=item.completion, label=label)
        for item, label in zip(items(pair), (True, False), strict=True)
    ]


@torch.no_grad()
def reference(policy: Policy, wanted: Sequence[Item], *, label: str = "reference") -> Cache:
    """Log-probs of every item under a policy that does not learn, in batches of its choice."""
    found: dict[str, Tensor] = {}
    with tqdm(total=len(wanted), desc=label, unit="answer", dynamic_ncols=True) as bar:
        for batch in policy.batches(wanted):
            steps = price(policy, [wanted[i] for i in batch])
            for row, i in enumerate(batch):
                found[wanted[i].id] = steps.logp[row][steps.mask[row]].cpu()
            bar.update(len(batch))
    return Cache({item.id: found[item.id] for item in wanted})


def price(
    policy: Policy, wanted: Sequence[Item], cache: Cache | None = None, *, entropy: bool = False, hidden: bool = False
) -> Steps:
    """Steps of the items under the policy, with `ref` out of the cache where there is one."""
    steps = policy.log_probs(wanted, entropy=entropy, hidden=hidden)
    if cache is None:
        return steps
    ref = torch.zeros_like(steps.logp, requires_grad=False)
    for row, item in enumerate(wanted):
        held = cache.of(item)
        ref[row, : len(held)] = held.to(ref)
    return replace(steps, ref=ref.detach())


def behaviour(wanted: Sequence[Item], steps: Steps) -> Tensor:
    """Log-probs `[b,t]` that the items had when they were drawn, 0 in padding.

    Raises:
        UserError: nobody wrote them down.
    """
    old = torch.zeros_like(steps.logp, requires_grad=False)
    for row, (item, count) in enumerate(zip(wanted, steps.mask.sum(-1).tolist(), strict=True)):
        held = torch.tensor(item.completion.logps[:count])
        if len(held) < count:
            where, mend = f"preference '{item.id}'", "generate the answers, or choose an objective that needs none"
            raise UserError("an answer without the log-probs of the policy that gave it", where=where, mend=mend)
        old[row, :count] = held.to(old)
    return old


def key_ranks(policy: Any, wanted: Sequence[Item], steps: Steps) -> Tensor:
    """The rank of the key phrase that each step of each answer is part of, over their number, inf in none: `[b,t]`."""
    told = torch.full_like(steps.logp, torch.inf, requires_grad=False)
    for row, ranks in enumerate(policy.key_ranks(wanted)):
        told[row, : len(ranks)] = torch.tensor(ranks).to(told)
    return told


def batch(
    policy: Policy,
    chosen: Sequence[Example],
    needs: tuple[str, ...],
    cache: Cache | None,
    mismatches: dict[str, Item] | None = None,
    *,
    soft: bool = False,
    draw: int = 0,
) -> Pairs | Revisions | Singles | Groups:
    """The batch of an objective: log-probs from the policy, the rest from the records.

    Args:
        policy: prices the completions.
        chosen: pairs, revisions, singles, or rankings.
        needs: of the objective.
        cache: reference log-probs by item id.
        mismatches: by item id, its prompt with another prompt's completion.
        soft: hand over P(chosen is preferred); else every pair counts as certain.
        draw: which seeded draw prices them, where the policy takes draws.
    """
    draw = draw if policy.seeded else 0
    cache = cache if "reference" in needs else None
    rows_of = [items(example, draw) for example in chosen]
    ordered = isinstance(chosen[0], Ranking)  # else all chosen, then all rejected
    flat = [i for row in rows_of for i in row] if ordered else [i for side in zip(*rows_of) for i in side]
    steps, n = price(policy, flat, cache, entropy="entropy" in needs, hidden="hidden" in needs), len(chosen)
    steps = replace(steps, old=behaviour(flat, steps)) if "behaviour" in needs else steps
    steps = replace(steps, key_rank=key_ranks(policy, flat, steps)) if "key_rank" in needs else steps
    if ordered:
        return ranked(steps, chosen)
    if isinstance(chosen[0], Pair | Revision):
        told = columns([e.pairs[0] if isinstance(e, Revision) else e for e in chosen], policy.device, soft=soft)
        side = [rows(steps, slice(start, start + n)) for start in range(0, len(flat), n)]
        answers = Pairs(side[0], side[1], **told)
        return Revisions(answers, Pairs(side[2], side[3]), Pairs(side[4], side[5])) if side[2:] else answers
    singles = [example for example in chosen if isinstance(example, Single)]
    mismatch = None
    if "mismatch" in needs and mismatches is not None:
        with torch.no_grad():
            mismatch = price(policy, [mismatches[s.id] for s in singles], cache)
    label = torch.tensor([bool(s.label) for s in singles], device=policy.device)
    return Singles(steps=steps, mismatch=mismatch, label=label)


def columns(pairs: Sequence[Example], device: torch.device, *, soft: bool) -> dict[str, Tensor]:
    """What the labels say of pairs: `[b]` each, P(chosen is preferred) where it is asked for."""
    wanted = ("prob", "margin", "chosen_rate", "rejected_rate")
    return {
        name: torch.tensor([getattr(pair, name) for pair in pairs], device=device)
        for name in wanted
        if soft or name != "prob"
    }


def ranked(steps: Steps, rankings: Sequence[Example]) -> Groups:
    """Rows of several rankings, one after another, as groups of the longest; a shorter one leaves invalid members."""
    sizes = [len(r.completions) for r in rankings if isinstance(r, Ranking)]
    k, ends = max(sizes), torch.tensor(sizes).cumsum(0).tolist()
    at = torch.zeros(len(sizes), k, dtype=torch.long)
    valid = torch.zeros(len(sizes), k, dtype=torch.bool)
    reward = torch.zeros(len(sizes), k)
    for g, (ranking, end) in enumerate(zip(rankings, ends, strict=True)):
        assert isinstance(ranking, Ranking)
        at[g, : sizes[g]] = torch.arange(end - sizes[g], end)
        valid[g, : sizes[g]] = True
        reward[g, : sizes[g]] = torch.tensor([c.score or 0.0 for c in ranking.completions])
    place = steps.logp.device
    grouped = Steps(**{n: v[at.to(place)] for n, v in vars(steps).items() if v is not None})
    return Groups(grouped, reward=reward.to(place), valid=valid.to(place))


def mismatched(singles: Sequence[Example]) -> dict[str, Item]:
    """Each prompt with the completion of the nearest later single of another prompt (kto's reference point)."""
    ring = [items(s)[0] for s in singles]
    found = {}
    for i, item in enumerate(ring):
        others = (ring[(i + shift) % len(ring)] for shift in range(1, len(ring)))
        other = next((o for o in others if o.messages != item.messages), item)
        found[item.id] = Item(f"{item.id}:mismatch", item.messages, other.completion, item.draw)
    return found


def rows(steps: Steps, which: slice) -> Steps:
    """Some rows of a batch of steps, cut to their own longest."""
    t = int(steps.mask[which].sum(-1).max())
    cut = {name: value[which, :t] for name, value in vars(steps).items() if value is not None}
    return Steps(**cut)
