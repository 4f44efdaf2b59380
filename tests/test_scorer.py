"""The reward model and the encoder on tiny real models: values do not depend on the batch, and come back as saved."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from stages.batches import Item
from stages.errors import UserError
from stages.policies import tiny
from stages.policies.encoder import Encoder
from stages.policies.order import TIGHT
from stages.policies.text import Scorer
from stages.records import Candidate, Completion, Message, Prompt

BUILT = {"encoder": tiny.encoder, "language model": tiny.language_model}


@pytest.fixture(scope="module", params=list(BUILT))
def folder(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    BUILT[request.param](made)
    return made


def rows(texts: list[str]) -> tuple[list[Prompt], list[Candidate]]:
    prompts = [Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Ask {i}?"),)) for i in range(len(texts))]
    return prompts, [Candidate(id=f"p{i}/0", prompt=f"p{i}", text=t, finished=True) for i, t in enumerate(texts)]


def test_a_score_does_not_depend_on_padding(folder):
    torch.manual_seed(0)
    scorer = Scorer.load(folder)
    prompts, candidates = rows(["short", "a much longer answer " * 5, "middle sized one"])
    together = scorer(prompts, candidates)
    alone = [scorer([p], [c])[0] for p, c in zip(prompts, candidates, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len(set(together)) == 3


def encoded(scorer: Scorer, asked: list[str], answers: list[str]):
    return scorer.tokenizer(asked, answers, truncation="longest_first", max_length=scorer.max_length)


ASKED = ["Ask 0?", "Another question, longer than that?", "Ask 0?", "Ask 0?", "?", "A question " * 9]
ANSWERS = ["yes", "no, and at some length " * 3, "a considerably longer answer " * 2, "", "no", "An answer " * 9]


def priced(scorer: Scorer, score) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores of a few rows, some with the same question, and the gradient of their weighted sum."""
    found = score(encoded(scorer, ASKED, ANSWERS))
    (found * torch.arange(1.0, 1 + len(ASKED))).sum().backward()
    slopes = {name: p.grad for name, p in scorer.parameters().items() if p.grad is not None}
    scorer.model.zero_grad()
    return found.detach(), slopes


@pytest.mark.parametrize("limit", [512, 40])
def test_rows_without_padding_score_as_in_one_padded_batch(folder, limit):
    """Values and gradients, rows that are cut among them; the language model packs, the encoder groups by length."""
    torch.manual_seed(0)
    scorer = Scorer.load(folder, trainable=True)
    scorer.max_length = limit
    rows = encoded(scorer, ASKED, ANSWERS)["input_ids"]
    assert (max(map(len, rows)) == limit) == (limit == 40)
    assert scorer.packs() == hasattr(scorer.model, "score")
    value, slopes = priced(scorer, scorer.packed if scorer.packs() else scorer.padded)
    wanted, expected = priced(scorer, lambda told: scorer.together(dict(told)))
    torch.testing.assert_close(value, wanted, rtol=0, atol=1e-5)
    assert slopes.keys() == expected.keys()
    for name, slope in slopes.items():
        torch.testing.assert_close(slope, expected[name], rtol=1e-4, atol=1e-4, msg=name)


def passes(scorer: Scorer, items: list[Item]) -> list[torch.Size]:
    """Shape of the token ids of every pass that scores items."""
    scorer.packs()
    shapes = []
    hook = scorer.model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: shapes.append(out.shape)
    )
    scorer.score(items)
    hook.remove()
    return shapes


def test_a_question_is_read_once_and_no_padding_is(folder):
    """The rows of a question stay together: by itself it has 6 tokens here, and its answers 3, 58 and 0."""
    scorer = Scorer.load(folder)
    items = [
        Item(str(n), (Message(role="user", content=asked),), Completion.model_construct(text=answer))
        for n, (asked, answer) in enumerate(zip(ASKED, ANSWERS, strict=True))
    ]
    real = sum(map(len, encoded(scorer, ASKED, ANSWERS)["input_ids"]))
    read = sum(shape[:2].numel() for shape in passes(scorer, items))
    if scorer.packs():
        assert read == real - 2 * len("Ask 0?")
    else:
        assert real <= read <= TIGHT * real


def test_a_decoder_that_cannot_pack_is_found_out():
    """GPT-2's positions are absolute and it packs; without its positions it does not, and padded batches are used."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=64, num_labels=1, pad_token_id=2)
    model = GPT2ForSequenceClassification(config).eval()
    with TemporaryDirectory() as made:
        tiny.tokenizer(Path(made))
        tokenizer = AutoTokenizer.from_pretrained(made)
    assert Scorer(model, tokenizer, max_length=64).packs()
    read = model.transformer.forward
    model.transformer.forward = lambda *given, position_ids=None, **named: read(*given, **named)
    with pytest.warns(UserWarning, match="cannot score packed rows"):
        assert not Scorer(model, tokenizer, max_length=64).packs()


def test_it_comes_back_with_its_head_and_constants(folder, tmp_path):
    torch.manual_seed(0)
    scorer = Scorer.load(folder, trainable=True)
    scorer.mean, scorer.std = 0.3, 2.0
    scorer.save(tmp_path)
    prompts, candidates = rows(["one", "two"])
    torch.manual_seed(99)  # a fresh head would differ
    again = Scorer.load(tmp_path)
    assert (again.mean, again.std) == (0.3, 2.0)
    assert again(prompts, candidates) == pytest.approx(scorer(prompts, candidates), abs=1e-6)


def test_outputs_have_names_and_come_back(folder, tmp_path):
    """An output is asked for by its name; a packed pass tells all of them as a padded one does."""
    torch.manual_seed(0)
    scorer = Scorer.load(folder, trainable=True, outputs=("honesty", "detail"))
    prompts, candidates = rows(["one", "two and three"])
    told = encoded(scorer, ASKED, ANSWERS)
    torch.testing.assert_close(scorer.padded(told), scorer.together(dict(told)), atol=1e-4, rtol=1e-4)
    if scorer.packs():
        torch.testing.assert_close(scorer.packed(told), scorer.together(dict(told)), atol=1e-4, rtol=1e-4)
    both = [scorer(prompts, candidates, name) for name in ("honesty", "detail")]
    assert both[0] != pytest.approx(both[1], abs=1e-3)
    scorer.save(tmp_path)
    again = Scorer.load(tmp_path)
    assert again.outputs == ("honesty", "detail")
    assert again(prompts, candidates, "detail") == pytest.approx(both[1], abs=1e-6)
    with pytest.raises(UserError, match="no output 'honest'; did you mean 'honesty'"):
        again(prompts, candidates, "honest")
    with pytest.raises(UserError, match="it has the outputs honesty, detail; name one"):
        again(prompts, candidates)
    with pytest.raises(UserError, match="train it with the objective 'regression'"):
        Scorer.load(folder)(prompts, candidates, "detail")


def test_embeddings_are_unit_vectors_and_do_not_depend_on_the_batch(tmp_path):
    tiny.encoder(tmp_path)
    encoder = Encoder.load(tmp_path)
    texts = ["a cat", "a considerably longer sentence about a cat on a mat", "dog"]
    together = encoder.embed(texts)
    assert torch.allclose(together.norm(dim=-1), torch.ones(3), atol=1e-6)
    for i, one in enumerate(texts):
        assert torch.allclose(encoder.embed([one])[0], together[i], atol=1e-5)
    assert encoder.embed([]).shape == (0, 32)
