"""Rows that grow side by side against rows that grow alone, on every family of decoder; and how tokens are drawn."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from stages import rollout
from stages.batches import Item
from stages.errors import UserError
from stages.policies import tiny
from stages.policies.text import decoding, plain, vllm
from stages.policies.text.decoding import Asked, Growing, rows_of
from stages.policies.text.drawing import BLOCK, draw, noise, stream
from stages.policies.text.policy import TextPolicy, TextSettings
from stages.policies.text.rows import Prefill, Rows
from stages.records import Candidate, Completion, Message, Prompt
from tests.text import families

LENGTHS = (9, 3, 14, 1, 6)  # tokens of each prompt
K, NEW = 3, 20
ENDS = frozenset({1, *range(5, 101, 9)})  # some rows end early, some are cut off
SAMPLED, GREEDY = Asked(0, 0.8, 0.95, NEW, ENDS), Asked(0, 0.0, 1.0, NEW, ENDS)


def prompts(*lengths: int) -> list[list[int]]:
    made = torch.Generator().manual_seed(1)
    return [torch.randint(12, families.VOCABULARY, (n,), generator=made).tolist() for n in lengths]


def names(count: int, k: int = K) -> list[str]:
    return [f"{i}/{j}" for i in range(count) for j in range(k)]


def policy(model) -> TextPolicy:
    return TextPolicy(model, families.Tokens(), TextSettings())


def grown(model, asked: Asked, slots: int = 64) -> list[Growing]:
    rows = rows_of(names(len(LENGTHS)), K, seed=3)
    decoding.decode(model, prompts(*LENGTHS), rows, asked, slots)
    return rows


def alone(model, asked: Asked) -> list[Growing]:
    """Each row by itself, the whole sequence anew at every token."""
    rows = rows_of(names(len(LENGTHS)), K, seed=3)
    for row in rows:
        ended = False
        while not ended:
            ids = torch.tensor([prompts(*LENGTHS)[row.prompt] + row.tokens])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            drawn = decoding.draw_of([row], logits, asked)
            ended = row.take(*(value.item() for value in drawn), asked)
    return rows


def same(found: list[Growing], wanted: list[Growing], gap: float) -> None:
    assert [row.tokens for row in found] == [row.tokens for row in wanted]
    for row, other in zip(found, wanted, strict=True):
        assert row.logps == pytest.approx(other.logps, abs=gap)
        assert row.entropy == pytest.approx(other.entropy, abs=gap * len(row.tokens))


@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_rows_side_by_side_equal_rows_alone(family, dtype, gap):
    model = families.build(family, dtype)
    wanted = alone(model, SAMPLED)
    lengths = {len(row.tokens) for row in wanted}
    assert len(lengths) > 3, "rows are to end at different times"
    made = policy(model)
    assert made.packs()
    for slots in (1, 4, 64):
        same(grown(made.causal, SAMPLED, slots), wanted, gap)
    same(grown(made.causal, GREEDY, 4), alone(model, GREEDY), gap)


@pytest.mark.parametrize("family", [*families.FAMILIES, *families.STATEFUL])
def test_the_fallback_gives_the_same_rows(family):
    model = policy(families.build(family)).causal
    for asked in (SAMPLED, GREEDY):
        rows = rows_of(names(len(LENGTHS)), K, seed=3)
        plain.decode(model, prompts(*LENGTHS), rows, asked, 4, families.Tokens.pad_token_id)
        same(rows, alone(model, asked), 1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_greedy_rows_are_those_of_transformers(family):
    model = families.build(family, torch.float32)
    wanted = []
    for ids in prompts(*LENGTHS):
        out = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NEW,
            eos_token_id=sorted(ENDS),
            pad_token_id=2,
        )
        wanted += [out[0, len(ids) :].tolist()] * K
    assert [row.tokens for row in grown(policy(model).causal, GREEDY, 7)] == wanted


def test_no_more_rows_than_slots_stand_side_by_side_and_free_slots_are_taken(monkeypatch):
    beside, grow = [], decoding.grow

    def watched(model, store, tokens):
        beside.append(len(tokens))
        return grow(model, store, tokens)

    monkeypatch.setattr(decoding, "grow", watched)
    model = policy(families.build("llama", torch.float32)).causal
    rows = rows_of(names(40, 2), 2, seed=0)
    decoding.decode(model, prompts(*range(1, 41)), rows, SAMPLED, 16)
    assert max(beside) == 16
    assert all(row.tokens for row in rows)
    drawn = sum(len(row.tokens) - 1 for row in rows)
    assert sum(beside) == drawn
    assert len(beside) < 1.5 * drawn / 16 + NEW, "slots stand empty while rows wait"


def test_a_prompt_is_prefilled_once_and_forgotten(monkeypatch):
    read, prefill, held = [], decoding.prefill, []

    def watched(model, store, asked):
        read.extend(map(tuple, asked))
        found = prefill(model, store, asked)
        held.append(len(store.lengths))
        return found

    monkeypatch.setattr(decoding, "prefill", watched)
    model = policy(families.build("llama", torch.float32)).causal
    asked = prompts(*range(1, 21))
    rows = rows_of(names(20, 5), 5, seed=0)
    decoding.decode(model, asked, rows, SAMPLED, 4)
    assert sorted(read) == sorted(map(tuple, asked))
    assert max(held) <= 4


def test_rows_move_into_the_places_of_those_that_end():
    model = policy(families.build("llama")).causal
    store, tokens = Rows("cpu"), prompts(5, 3)
    first = decoding.prefill(model, store, tokens)
    assert first.shape == (2, 32)
    store.start([0, 0, 1, 1])
    with torch.no_grad():
        decoding.grow(model, store, [20, 21, 22, 23])
        assert store.end([0, 2]) == [3, 1]
        assert (store.owners, store.ages) == ([1, 0], [1, 1])
        found = decoding.grow(model, store, [33, 31])
        for state, ids in zip(found, ([*tokens[1], 23, 33], [*tokens[0], 21, 31]), strict=True):
            layout = Prefill([ids], "cpu")
            wanted = decoding.states_of(model, layout.ids, layout.positions, layout)[-1]
            torch.testing.assert_close(state, wanted)
        assert store.end([1]) == [0]
        assert store.forget([0]) == [1]
        found = decoding.grow(model, store, [40])
        layout = Prefill([[*tokens[1], 23, 33, 40]], "cpu")
        torch.testing.assert_close(found[0], decoding.states_of(model, layout.ids, layout.positions, layout)[-1])


def test_half_precision_rows_are_close_to_single_ones():
    model = policy(families.build("gemma2", torch.float32)).causal
    wanted = grown(model, GREEDY)
    found = grown(model.to(torch.bfloat16), GREEDY)
    for row, other in zip(found, wanted, strict=True):
        assert row.logps[0] == pytest.approx(other.logps[0], abs=0.2)


# ------------------------------------------------------------------------------------------------- through the policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny.language_model(made)
    return made


def said(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", messages=(Message(role="user", content="word " * (i + 1)),)) for i in range(count)]


def test_candidates_do_not_depend_on_slots_and_carry_the_log_probs_of_pricing(folder):
    asked = said(6)
    wanted = TextPolicy.load(folder, TextSettings(slots=1)).sample(asked, 4, seed=2, max_new_tokens=16)
    for slots in (3, 64):
        made = TextPolicy.load(folder, TextSettings(slots=slots))
        found = made.sample(asked, 4, seed=2, max_new_tokens=16)
        assert [(c.id, c.prompt, c.tokens, c.finished) for c in found] == [
            (c.id, c.prompt, c.tokens, c.finished) for c in wanted
        ]
    by_id = {prompt.id: prompt for prompt in asked}
    items = [
        Item(c.id, by_id[c.prompt].messages, Completion(text="?", finished=c.finished, tokens=c.tokens)) for c in found
    ]
    steps = made.log_probs(items, entropy=True)
    for i, candidate in enumerate(found):
        assert steps.logp[i][steps.mask[i]].tolist() == pytest.approx(candidate.logps, abs=1e-4)
        assert float(steps.entropy[i].sum()) / len(candidate.tokens) == pytest.approx(candidate.entropy, abs=1e-4)


def test_a_policy_that_cannot_pack_gives_the_same_candidates(folder, monkeypatch):
    made = TextPolicy.load(folder)
    wanted = made.sample(said(4), 3, seed=1, top_p=0.9, max_new_tokens=12)
    monkeypatch.setattr(made, "packs", lambda: False)
    found = made.sample(said(4), 3, seed=1, top_p=0.9, max_new_tokens=12)
    for a, b in zip(found, wanted, strict=True):
        assert (a.id, a.text, a.tokens) == (b.id, b.text, b.tokens)
        assert a.logps == pytest.approx(b.logps, abs=1e-4)


def test_chunks_of_any_size_hold_the_same_candidates(folder, tmp_path):
    made, asked, sizes = TextPolicy.load(folder), said(7), []

    def draw(some: list[Prompt]) -> list[Candidate]:
        sizes.append(len(some))
        return made.sample(some, 2, seed=0, max_new_tokens=8)

    wanted = rollout.sample(draw, asked, 2, tmp_path / "whole", label="whole", chunk=made.chunk)
    assert sizes == [7]
    found = rollout.sample(draw, asked, 2, tmp_path / "parts", label="parts", chunk=4)
    assert sizes == [7, 2, 2, 2, 1]
    assert [c.prompt for c in found] == [p.id for p in asked for _ in range(2)]
    assert [c.tokens for c in found] == [c.tokens for c in wanted]
    again = rollout.sample(draw, asked, 2, tmp_path / "parts", label="resumed", chunk=4)
    assert again == found
    assert len(sizes) == 5, "what is in scratch was drawn again"


def test_a_summary_tells_entropy_where_it_is_known():
    known = Candidate(id="a", prompt="p", text="x", tokens=(1, 2), entropy=1.5)
    unknown = Candidate(id="b", prompt="p", text="x", tokens=(1, 2))
    assert rollout.summary([known, unknown])["entropy"] == 1.5
    assert "entropy" not in rollout.summary([unknown])


# ------------------------------------------------------------------------------------------------------- the drawing

COUNT = 20_000


def many(count: int, vocabulary: int) -> torch.Tensor:
    return noise([stream(0, str(i)) for i in range(count)], vocabulary)


@pytest.mark.parametrize(
    ("temperature", "top_p", "wanted"),
    [
        (1.0, 1.0, [0.5, 0.25, 0.15, 0.1]),
        (1.0, 0.7, [2 / 3, 1 / 3, 0, 0]),  # 0.5 + 0.25 is the smallest mass of at least 0.7
        (0.5, 1.0, [w**2 / (0.25 + 0.0625 + 0.0225 + 0.01) for w in (0.5, 0.25, 0.15, 0.1)]),
    ],
)
def test_draws_follow_the_distribution(temperature, top_p, wanted):
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log().repeat(COUNT, 1)
    drawn = draw(logits, many(COUNT, 4), temperature, top_p)
    share = drawn.token.bincount(minlength=4) / COUNT
    assert share.tolist() == pytest.approx(wanted, abs=0.015)
    torch.testing.assert_close(drawn.logp, logits.log_softmax(-1).gather(-1, drawn.token[:, None]).squeeze(-1))
    spread = torch.distributions.Categorical(logits=logits[:1]).entropy()
    torch.testing.assert_close(drawn.entropy, spread.expand(COUNT))


@pytest.mark.parametrize("vocabulary", [3 * BLOCK, 3 * BLOCK - 56, 40])
def test_blocks_of_the_vocabulary_are_drawn_by_their_mass(vocabulary):
    torch.manual_seed(0)
    logits = (3 * torch.randn(vocabulary)).repeat(COUNT, 1)
    token = draw(logits, many(COUNT, vocabulary), 1.0, 1.0).token
    share, wanted = token.bincount(minlength=vocabulary) / COUNT, logits[0].softmax(-1)
    error = (wanted * (1 - wanted) / COUNT).sqrt()
    assert ((share - wanted).abs() < 5 * error + 1e-3).all()


def test_a_greedy_draw_is_the_most_likely_token():
    torch.manual_seed(0)
    logits = torch.randn(8, 600)
    drawn = draw(logits, None, 0.0, 1.0)
    assert torch.equal(drawn.token, logits.argmax(-1))
    torch.testing.assert_close(drawn.logp, logits.log_softmax(-1).amax(-1))


def test_a_nucleus_beyond_the_short_list_is_drawn_from_the_whole_vocabulary():
    logits = torch.linspace(0, -1, 2000).repeat(400, 1)  # 256 tokens hold a fifth of the mass
    logits[0, 7] = 30.0
    drawn = draw(logits, many(400, 2000), 1.0, 0.9).token
    mass = logits[1].softmax(-1).cumsum(0)
    last = int((mass < 0.9).sum())
    assert drawn[0] == 7
    assert last - 200 < int(drawn.max()) <= last


def test_rounding_leaves_draws_as_they_are():
    torch.manual_seed(0)
    logits = 2 * torch.randn(1000, 3000)
    random = many(1000, 3000)
    shaken = logits + 1e-5 * torch.randn_like(logits)
    for top_p in (1.0, 0.9):
        a, b = draw(logits, random, 1.0, top_p).token, draw(shaken, random, 1.0, top_p).token
        assert (a != b).sum() <= 1


# ------------------------------------------------------------------------------------------------------------- vLLM


def test_vllm_is_asked_for_by_one_line_where_it_is_not_installed(folder):
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    with pytest.raises(UserError, match="vllm is not installed; pip install 'prefloop\\[vllm\\]'"):
        TextPolicy.load(folder, TextSettings(sampling="vllm"))
    TextPolicy.load(folder, TextSettings(sampling="vllm"), trainable=True, lora_r=2)  # samples natively


@dataclass
class Logprob:  # the fields of vLLM's classes that are documented and read
    logprob: float


@dataclass
class Output:
    token_ids: tuple[int, ...]
    logprobs: list[dict[int, Logprob]]


def test_what_vllm_tells_becomes_a_row():
    (row,) = rows_of(["p/0"], 1, seed=0)
    vllm.fill(row, Output((7, 9, 1), [{7: Logprob(-0.5)}, {9: Logprob(-2.0), 4: Logprob(-0.1)}, {1: Logprob(-0.25)}]))
    assert (row.tokens, row.logps, row.entropy) == ([7, 9, 1], [-0.5, -2.0, -0.25], None)
