"""Beam search against all answers there are, against greedy rows, and against the same search written with lists."""

import math
from itertools import product

import pytest
import torch

from stages.policies import tiny
from stages.policies.text import beam, decoding
from stages.policies.text.decoding import Asked, rows_of
from stages.policies.text.policy import TextPolicy, TextSettings
from stages.records import Message, Prompt
from tests.text import families
from tests.text.test_decoding import ENDS, LENGTHS, prompts


def policy(family: str, dtype: torch.dtype = torch.float64) -> TextPolicy:
    return TextPolicy(families.build(family, dtype), families.Tokens(), TextSettings())


def found(made: TextPolicy, *, beams: int, k: int = 1, longest: int = 12) -> beam.Beams:
    """What a search finds for prompts of several lengths."""
    with torch.no_grad():
        first, advance = beam._told(made, prompts(*LENGTHS), beams)
        return beam.likeliest(first, advance, beams=beams, k=k, ends=torch.tensor(sorted(ENDS)), longest=longest)


def logp(made: TextPolicy, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return made.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)


def by_lists(made: TextPolicy, prompt: list[int], beams: int, longest: int) -> list[tuple[float, list[int]]]:
    """The same search, a beam at a time and a sequence anew at every token."""
    pool: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(longest):
        further = []
        for score, said in pool:
            if said and said[-1] in ENDS:
                further.append((score, said))
                continue
            further += [(score + p, [*said, token]) for token, p in enumerate(logp(made, prompt + said).tolist())]
        pool = sorted(further, key=lambda one: -one[0])[:beams]
    return pool


def answers(tokens: torch.Tensor) -> list[list[list[int]]]:
    return [[[t for t in one if t != beam.NONE] for one in row] for row in tokens.tolist()]


@pytest.mark.filterwarnings("ignore:.*cannot price packed rows")
@pytest.mark.parametrize("family", [*families.FAMILIES, *families.STATEFUL])
def test_it_is_the_search_by_lists(family: str) -> None:
    """Packed rows on every family, whole sequences where the model cannot be packed."""
    made = policy(family)
    assert made.packs() == (family in families.FAMILIES)
    told = found(made, beams=3, k=3, longest=6)
    for i, prompt in enumerate(prompts(*LENGTHS)):
        wanted = by_lists(made, prompt, 3, 6)
        assert answers(told.tokens)[i] == [said for _, said in wanted]
        assert told.score[i].tolist() == pytest.approx([score for score, _ in wanted], abs=1e-5)


def test_it_finds_answers_that_end_at_different_steps() -> None:
    """What the comparison by lists is worth: some beams end, others go on, and some are pushed out by later ones."""
    sizes = {len(one) for row in answers(found(policy("llama"), beams=4, k=4).tokens) for one in row}
    assert len(sizes) > 2


def test_one_beam_is_greedy() -> None:
    made = policy("llama")
    rows = rows_of([str(i) for i in range(len(LENGTHS))], 1, seed=0)
    decoding.decode(made.causal, prompts(*LENGTHS), rows, Asked(0, 0.0, 1.0, 12, ENDS), 64)
    told = found(made, beams=1)
    assert answers(told.tokens) == [[row.tokens] for row in rows]
    for row, logps, entropy in zip(rows, told.logps[:, 0].tolist(), told.entropy[:, 0].tolist()):
        assert logps[: len(row.tokens)] == pytest.approx(row.logps, abs=1e-6)
        assert entropy == pytest.approx(row.entropy, abs=1e-5)


def test_with_a_beam_for_every_beginning_it_is_exact() -> None:
    """Of two tokens, with a beam for each first one: the best of all answers, by enumeration."""
    made, v = policy("gpt2"), families.VOCABULARY
    told = found(made, beams=v, k=5, longest=2)
    for i, prompt in enumerate(prompts(*LENGTHS)):
        first = logp(made, prompt)
        every = [(float(first[a]), [a]) for a in ENDS]
        for a in set(range(v)) - ENDS:
            every += [(float(first[a]) + p, [a, b]) for b, p in enumerate(logp(made, [*prompt, a]).tolist())]
        best = sorted(every, reverse=True)[:5]
        assert answers(told.tokens)[i] == [said for _, said in best]
        assert told.score[i].tolist() == pytest.approx([score for score, _ in best], abs=1e-6)


def test_score_is_the_sum_of_log_probs_and_ordered() -> None:
    told = found(policy("qwen2"), beams=5, k=5)
    torch.testing.assert_close(told.logps.sum(-1), told.score)
    assert (told.score.diff(dim=-1) <= 0).all()
    assert (told.logps[told.tokens == beam.NONE] == 0).all()


@pytest.mark.parametrize(("depth", "actions"), [(3, 3), (4, 2)])
def test_exact_on_random_trees(depth: int, actions: int) -> None:
    """A table of logits for every beginning, no token that ends: with a beam for each leaf, the best leaf."""
    noise = torch.Generator().manual_seed(depth)
    table = {p: torch.randn(actions, generator=noise) for d in range(depth) for p in product(range(actions), repeat=d)}
    said: list[tuple[int, ...]] = [()] * actions**depth

    def advance(parents: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        come = zip(parents[0].tolist(), tokens[0].tolist(), strict=True)
        said[:] = [(*said[parent], token) for parent, token in come]
        return torch.stack([table[path] for path in said])[None]

    leaves = {
        leaf: math.fsum(float(table[leaf[:d]].log_softmax(-1)[leaf[d]]) for d in range(depth))
        for leaf in product(range(actions), repeat=depth)
    }
    told = beam.likeliest(
        table[()][None], advance, beams=len(leaves), k=len(leaves), ends=torch.tensor([]), longest=depth
    )
    assert [tuple(one) for one in told.tokens[0].tolist()] == sorted(leaves, key=lambda leaf: -leaves[leaf])
    assert math.fsum(told.score[0].exp().tolist()) == pytest.approx(1, abs=1e-5)


def test_fewer_answers_than_beams_leave_beams_empty() -> None:
    told = beam.likeliest(
        torch.zeros(1, 2), lambda parents, _: torch.zeros(1, 4, 2), beams=4, k=4, ends=torch.tensor([0, 1]), longest=3
    )
    assert answers(told.tokens)[0][:2] in ([[0], [1]], [[1], [0]])
    assert told.score[0].isneginf().tolist() == [False, False, True, True]
    assert len(next(beam._rows(told, [0]))) == 2


def test_candidates_of_a_policy(tmp_path) -> None:
    """They do not depend on slots, and their log-probs are those of pricing."""
    from stages.batches import Item
    from stages.records import Completion

    tiny.language_model(tmp_path)
    asked = [Prompt(id=f"p{i}", messages=(Message(role="user", content="word " * (i + 1)),)) for i in range(5)]
    few, many = (TextPolicy.load(tmp_path, TextSettings(slots=slots)) for slots in (1, 64))
    told = beam.search(many, asked, 2, beams=3, max_new_tokens=8)
    assert [(c.id, c.tokens) for c in told] == [
        (c.id, c.tokens) for c in beam.search(few, asked, 2, beams=3, max_new_tokens=8)
    ]
    assert [c.id for c in told] == [f"p{i}/{j}" for i in range(5) for j in range(2)]
    by_id = {prompt.id: prompt for prompt in asked}
    items = [
        Item(c.id, by_id[c.prompt].messages, Completion(text=c.text, tokens=c.tokens, finished=c.finished))
        for c in told
    ]
    with torch.no_grad():
        priced = many.log_probs(items)
    for candidate, logps, mask in zip(told, priced.logp, priced.mask):
        assert candidate.logps == pytest.approx(logps[mask].tolist(), abs=1e-4)
