"""A tiny GRU language model with prompts, for claims about objectives on texts: real gradients, known quality.

Ten tokens: an end, a start, and eight words; eight prompts. Every prompt has one word that it wants and one that it
forbids: quality is the share of the first minus the share of the second among a text's words. A text is at most
`LONGEST` tokens, its end included.

Texts are drawn from a policy (`sample`) or written with a share of wanted words (`write`); `judge` turns two texts of a
prompt into pairs by Bradley-Terry on their quality, with raters that like length if asked. `pretrained` knows texts
and no task, `tuned` was fine-tuned on texts of mixed quality; both are cached, and every call gives a copy that may be
trained. `learn` trains a policy with a real objective part on `Data`, `look` measures what came of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from stages import parts
from stages.batches import Groups, Pairs, Singles, Steps

END, START, WORDS, PROMPTS, LONGEST, WIDTH = 0, 9, 8, 8, 14, 32


@dataclass(frozen=True)
class Texts:
    """Texts of any leading shape: `[n]`, or `[g,k]` for k texts of each of g prompts."""

    prompt: Tensor  # [...] 0 to 7
    tokens: Tensor  # [...,t] END, or a word 1 to 8
    mask: Tensor  # [...,t] bool, the end included

    def __getitem__(self, rows: Any) -> Texts:
        return Texts(self.prompt[rows], self.tokens[rows], self.mask[rows])

    @property
    def words(self) -> Tensor:
        """Number of words, the end left out: `[...]`."""
        return (self.mask & (self.tokens != END)).sum(-1)


@dataclass(frozen=True)
class Data:
    """What is learned from: g prompts with k texts each; a pair is (chosen, rejected), a single has k = 1."""

    texts: Texts  # [g,k]
    prob: Tensor | None = None  # [g] of pairs
    margin: Tensor | None = None  # [g] of pairs
    chosen_rate: Tensor | None = None  # [g] of pairs
    rejected_rate: Tensor | None = None  # [g] of pairs
    reward: Tensor | None = None  # [g,k] of groups
    advantage: Tensor | None = None  # [g,k] or [g,k,t] of groups
    label: Tensor | None = None  # [g] bool of singles
    score: Tensor | None = None  # [g] of singles
    step_reward: Tensor | None = None  # [g,k,t]
    ref: Tensor | None = None  # [g,k,t] log-probs of the reference, filled in by `learn`
    old: Tensor | None = None  # [g,k,t] log-probs of the policy that drew them
    key_rank: Tensor | None = None  # [g,k,t]

    def __getitem__(self, rows: Any) -> Data:
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        cut: dict[str, Any] = {name: None if value is None else value[rows] for name, value in held.items()}
        return Data(**cut)

    def __len__(self) -> int:
        return len(self.texts.prompt)


class Model(nn.Module):
    """A GRU that reads the prompt as its first state and beside every token."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.token, self.asked = nn.Embedding(START + 1, WIDTH), nn.Embedding(PROMPTS, WIDTH)
            self.gru, self.head = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, START)

    def forward(self, prompt: Tensor, seen: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits `[n,t,9]` of what follows each token seen `[n,t]`, and the state after them."""
        hidden, state = self.read(prompt, seen, state)
        return self.head(hidden), state

    def read(self, prompt: Tensor, seen: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states `[n,t,d]` after each token seen, and the state after them all."""
        asked = self.asked(prompt)
        state = asked[None].contiguous() if state is None else state
        return self.gru(self.token(seen) + asked[:, None], state)


def states(model: Model, texts: Texts) -> Tensor:
    """The hidden state that every token of texts is taken from: `[...,t,d]`."""
    prompt, tokens = texts.prompt.flatten(), texts.tokens.flatten(0, -2)
    seen = torch.cat([torch.full_like(tokens[:, :1], START), tokens[:, :-1]], 1)
    return model.read(prompt, seen)[0].view(*texts.tokens.shape, WIDTH)


def log_distributions(model: Model, texts: Texts) -> Tensor:
    """Log-probs of all tokens at every step of texts: `[...,t,9]`."""
    return model.head(states(model, texts)).log_softmax(-1)


def log_probs(model: Model, texts: Texts) -> Tensor:
    """Log-prob of each token, 0 after the end: `[...,t]`."""
    taken = log_distributions(model, texts).gather(-1, texts.tokens[..., None]).squeeze(-1)
    return taken * texts.mask


def steps(
    model: Model, texts: Texts, reference: Model | None = None, *, entropy: bool = False, hidden: bool = False
) -> Steps:
    """What objectives take: log-probs, mask and, with a reference, `ref` and the KL from it at every step."""
    held = states(model, texts)
    logs = model.head(held).log_softmax(-1)
    logp = logs.gather(-1, texts.tokens[..., None]).squeeze(-1)
    spread = -(logs.exp() * logs).sum(-1) * texts.mask if entropy else None
    found = Steps(logp * texts.mask, texts.mask, entropy=spread, hidden=held if hidden else None)
    if reference is None:
        return found
    with torch.no_grad():
        base = log_distributions(reference, texts)
        ref = base.gather(-1, texts.tokens[..., None]).squeeze(-1)
    return replace(found, ref=ref * texts.mask, kl=(logs.exp() * (logs - base)).sum(-1) * texts.mask)


@torch.no_grad()
def sample(model: Model, prompt: Tensor, seed: int, *, longest: int = LONGEST, temperature: float = 1.0) -> Texts:
    """One text of each prompt `[n]`, or of `[g,k]` prompts; temperature 0 is greedy."""
    noise, flat = torch.Generator().manual_seed(seed), prompt.flatten()
    tokens = torch.full((len(flat), longest), END)
    mask, live = torch.zeros(len(flat), longest, dtype=torch.bool), torch.ones(len(flat), dtype=torch.bool)
    last, state = torch.full((len(flat), 1), START), None
    for t in range(longest):
        logits, state = model(flat, last, state)
        uniform = torch.rand(len(flat), START, generator=noise)
        gumbel = -(-uniform.clamp(1e-12, 1 - 1e-7).log()).log()
        drawn = (logits[:, 0] + temperature * gumbel).argmax(-1)
        tokens[:, t], mask[:, t] = torch.where(live, drawn, END), live
        live = live & (drawn != END)
        last = drawn[:, None]
    return Texts(prompt, tokens.view(*prompt.shape, longest), mask.view(*prompt.shape, longest))


def write(prompt: Tensor, wanted: float | Tensor, words: Tensor, seed: int, *, longest: int = LONGEST) -> Texts:
    """Texts of a number of words: each is the prompt's own with probability `wanted`, else one of the seven others.

    Args:
        prompt: `[n]`.
        wanted: the share, one number or `[n]`.
        words: how many `[n]`, less than `longest`.
        seed: of the words.
        longest: tokens that there is room for.
    """
    noise = torch.Generator().manual_seed(seed)
    shape = (len(prompt), longest)
    wanted = torch.as_tensor(wanted).expand(len(prompt))[:, None]
    other = torch.randint(1, WORDS, shape, generator=noise)  # steps from the prompt's own word
    own = torch.rand(shape, generator=noise) < wanted
    tokens = (prompt[:, None] + torch.where(own, 0, other)) % WORDS + 1
    place = torch.arange(longest)
    return Texts(prompt, torch.where(place < words[:, None], tokens, END), place <= words[:, None])


def counts(texts: Texts) -> tuple[Tensor, Tensor]:
    """How often a text says the word that is wanted, and the one that is forbidden, the next in order: `[...]`."""
    wanted, forbidden = texts.prompt % WORDS + 1, (texts.prompt + 1) % WORDS + 1
    said = [((texts.tokens == word[..., None]) & texts.mask).sum(-1) for word in (wanted, forbidden)]
    return said[0], said[1]


def quality(texts: Texts) -> Tensor:
    """Share of the wanted word minus share of the forbidden one, 0 of a text without words: `[...]`."""
    wanted, forbidden = counts(texts)
    return (wanted - forbidden) / texts.words.clamp(min=1)


def prompts(n: int, seed: int) -> Tensor:
    """Prompts `[n]`."""
    return torch.randint(PROMPTS, (n,), generator=torch.Generator().manual_seed(seed))


def judge(
    one: Texts,
    other: Texts,
    seed: int,
    *,
    sharpness: float = 5.0,
    length_bias: float = 0.0,
    score: Callable[[Texts], Tensor] = quality,
) -> Data:
    """Pairs by Bradley-Terry: P(one wins) = sigmoid(sharpness * (difference in score + length_bias * words)).

    `prob` is left out (a rater says one or the other); `margin` is the true difference of what raters see. Equal texts
    are dropped.
    """
    differ = (one.tokens != other.tokens).any(-1)
    one, other = one[differ], other[differ]
    gap = score(one) - score(other) + length_bias * (one.words - other.words)
    wins = torch.rand(len(gap), generator=torch.Generator().manual_seed(seed)) < torch.sigmoid(sharpness * gap)
    return Data(pair(pick(wins, one, other), pick(wins, other, one)), margin=torch.where(wins, gap, -gap))


def pick(first: Tensor, one: Texts, other: Texts) -> Texts:
    """One where `first [n]` holds, else the other."""
    chosen = torch.where(first[:, None], one.tokens, other.tokens), torch.where(first[:, None], one.mask, other.mask)
    return Texts(one.prompt, *chosen)


def pair(*texts: Texts) -> Texts:
    """K texts `[n]` of the same prompts side by side: `[n,k]`."""
    columns = [[getattr(each, field.name) for each in texts] for field in fields(Texts)]
    return Texts(*(torch.stack(column, 1) for column in columns))


def drawn(model: Model, n: int, seed: int, *, longest: int = LONGEST, **judging: Any) -> Data:
    """About n pairs of the policy's own samples, judged."""
    asked = prompts(n, seed)
    one, other = (sample(model, asked, seed + 1 + side, longest=longest) for side in range(2))
    return judge(one, other, seed + 3, **judging)


def written(n: int, wanted: tuple[float, ...], seed: int, *, longest: int = 10, shortest: int = 4) -> Data:
    """N prompts with a text of each share of wanted words, all of a prompt equally long: (0.7, 0.1) are pairs."""
    asked = prompts(n, seed)
    words = torch.randint(shortest, longest, (n,), generator=torch.Generator().manual_seed(seed + 1))
    return Data(pair(*(write(asked, share, words, seed + 2 + i, longest=longest) for i, share in enumerate(wanted))))


def batch(
    feedback: str, model: Model, rows: Data, reference: Model | None = None, **asked: bool
) -> Pairs | Groups | Singles:
    """The batch that an objective takes (`parts.find(...).feedback`): priced now, the rest as it is in the data.

    `entropy` and `hidden` states are told where they are asked for.
    """
    found = steps(model, rows.texts, reference, **asked)
    ref = found.ref if rows.ref is None else rows.ref
    found = replace(found, ref=ref, old=rows.old, reward=rows.step_reward, key_rank=rows.key_rank)

    def side(k: int) -> Steps:
        held = {name: value for name, value in vars(found).items() if value is not None}
        return Steps(**{name: value[:, k] for name, value in held.items()})

    if feedback == "Pairs":
        rates = {"chosen_rate": rows.chosen_rate, "rejected_rate": rows.rejected_rate}
        return Pairs(side(0), side(1), prob=rows.prob, margin=rows.margin, **rates)
    if feedback == "Singles":
        return Singles(side(0), label=rows.label, score=rows.score)
    reward = torch.zeros(rows.texts.prompt.shape) if rows.reward is None else rows.reward
    there = torch.ones_like(reward, dtype=torch.bool)
    return Groups(found, reward=reward, valid=there, advantage=rows.advantage)


def descend(
    model: Model, loss: Callable[[int], Tensor], updates: int, rate: float = 1e-3, head: Iterable[Tensor] = ()
) -> Model:
    """Adam on `loss(update)`, ten times as fast on a head beside the model; gives the same model back."""
    groups = [{"params": model.parameters()}, *({"params": [tensor], "lr": 10 * rate} for tensor in head)]
    optimizer = torch.optim.Adam(groups, lr=rate)
    for update in range(updates):
        optimizer.zero_grad()
        loss(update).backward()
        optimizer.step()
    return model


def learn(
    model: Model,
    objective: str,
    data: Data,
    *,
    seed: int,
    reference: Model | None = None,
    updates: int = 200,
    size: int = 128,
    rate: float = 1e-3,
    **settings: Any,
) -> Model:
    """Train a model, in place, with an objective part at its settings; gives it back.

    The reference's log-probs are computed once; where the objective takes the exact KL it is asked at every step.

    Args:
        model: learns.
        objective: name of the part.
        data: of the feedback that the part takes.
        seed: of the order of the data.
        reference: a model that does not learn, where the part needs one; the model as it starts if not given.
        updates: steps of Adam.
        size: prompts in a batch, drawn anew for every step.
        rate: of Adam.
        settings: of the part, and the `head` of one that has its own, which learns in place.
    """
    part, noise = parts.find("objective", objective), torch.Generator().manual_seed(seed)
    if "reference" in part.spec.needs or "kl" in part.spec.needs:
        reference = copy.deepcopy(model) if reference is None else reference
        with torch.no_grad():
            data = replace(data, ref=log_probs(reference, data.texts))

    def loss(_: int) -> Tensor:
        rows = data[torch.randint(len(data), (size,), generator=noise)]
        own, needs = reference if "kl" in part.spec.needs else None, part.spec.needs
        told = batch(part.feedback, model, rows, own, entropy="entropy" in needs, hidden="hidden" in needs)
        return part.function(told, **settings)[0].mean()

    return descend(model, loss, updates, rate, settings.get("head", {}).values())


def imitate(model: Model, texts: Texts, *, seed: int, updates: int = 200, size: int = 128, rate: float = 1e-3) -> Model:
    """Fine-tune a model, in place, on texts `[n]`: the mean over the tokens of a batch; gives it back."""
    noise = torch.Generator().manual_seed(seed)

    def loss(_: int) -> Tensor:
        rows = texts[torch.randint(len(texts.prompt), (size,), generator=noise)]
        return -log_probs(model, rows).sum() / rows.mask.sum()

    return descend(model, loss, updates, rate)


def pretrained(seed: int, *, longest: int = LONGEST) -> Model:
    """A copy of a model that writes texts of any words, whatever the prompt, in four words to the most there may be."""
    return copy.deepcopy(_pretrained(seed, longest))


def tuned(seed: int, *, longest: int = LONGEST) -> Model:
    """A copy of a model fine-tuned on texts of mixed quality: of each an evenly drawn share of 0 to 60 % is wanted."""
    return copy.deepcopy(_tuned(seed, longest))


@lru_cache
def _pretrained(seed: int, longest: int) -> Model:
    texts = corpus(8192, 1 / WORDS, seed + 10_000, longest=longest)
    return imitate(Model(seed), texts, seed=seed, updates=300, rate=5e-3)


@lru_cache
def _tuned(seed: int, longest: int) -> Model:
    shares = 0.6 * torch.rand(8192, generator=torch.Generator().manual_seed(seed + 20_000))
    return imitate(pretrained(seed, longest=longest), corpus(8192, shares, seed + 30_000, longest=longest), seed=seed)


def corpus(n: int, wanted: float | Tensor, seed: int, *, longest: int = LONGEST, shortest: int = 4) -> Texts:
    """N texts of random prompts and lengths with a share of wanted words."""
    words = torch.randint(shortest, longest, (n,), generator=torch.Generator().manual_seed(seed + 1))
    return write(prompts(n, seed), wanted, words, seed + 2, longest=longest)


def likelihood(model: Model, texts: Texts) -> float:
    """Mean log-prob of a token of texts: what was kept of them."""
    with torch.no_grad():
        return float(log_probs(model, texts).sum() / texts.mask.sum())


def look(model: Model, reference: Model | None = None, *, n: int = 2048, longest: int = LONGEST) -> dict[str, float]:
    """Figures of n samples: mean `quality` and number of words (`length`), and with a reference `kl` in nats a text.

    The KL of the policy from the reference is summed exactly over each step of the samples.
    """
    texts = sample(model, prompts(n, 555), 777, longest=longest)
    told = {"quality": float(quality(texts).mean()), "length": float(texts.words.double().mean())}
    if reference is not None:
        with torch.no_grad():
            apart = steps(model, texts, reference).kl
        assert apart is not None
        told["kl"] = float(apart.sum(-1).mean())
    return told
