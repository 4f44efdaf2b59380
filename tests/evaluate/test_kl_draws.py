"""KL is measured on answers of the policy itself, however the answers that are judged were decoded."""

from pathlib import Path

import torch

from stages import parts
from stages.config import Run
from stages.evaluate import answers
from stages.evaluate.measures import measure
from stages.panel import Panel, Tools
from stages.policies import family
from stages.policies.text.plain import next_logits
from stages.policies.text.policy import TextPolicy
from stages.records import Message, Prompt

ASKED = (Message(role="user", content="word"),)
PROMPTS = [Prompt(id=f"p{i}", messages=ASKED) for i in range(800)]
TEMPERATURE = parts.find("sampler", "temperature")


def exact(models: tuple[Path, Path]) -> float:
    """KL of one token, summed over the vocabulary."""
    told = []
    for folder in models:
        policy = TextPolicy.load(folder)
        told.append(next_logits(policy.model, [policy.encode_prompt(ASKED)], policy.pad)[0].double().log_softmax(-1))
    ref, own = told
    return float((own.exp() * (own - ref)).sum())


def measured(models: tuple[Path, Path], scratch: Path, *, plain: bool) -> dict[str, float]:
    """What the evaluate stage says of one-token answers that are judged at a low temperature."""
    judged, own = (TEMPERATURE, {"temperature": 0.2, "max_new_tokens": 1}), (TEMPERATURE, {"max_new_tokens": 1})
    policies, panel = answers.chain(*models), Panel(rewards={"length": {}})
    drawn = answers.sample(policies, judged, own if plain else None, PROMPTS, Run(), scratch, k=1, draws=1)
    base, found = family.load(Run(), models[0]), []
    for name, folder in policies:
        told = answers.price_drawn(base if name != "base" else None, PROMPTS, drawn[name], 1, name)
        found.append(answers.compare(name, folder, PROMPTS, drawn[name], drawn["base"], told, (panel, panel), Tools()))
    return measure({"kl": {}}, answers.columns(found[1], found[0]))


@torch.no_grad()
def test_it_is_the_kl_that_the_two_distributions_have(models, tmp_path) -> None:
    """One token, so that the sum over the vocabulary is exact; answers as they were decoded tell another number."""
    truth = exact(models)
    own, decoded = (measured(models, tmp_path / str(plain), plain=plain) for plain in (True, False))
    assert truth > 4 * own["kl/standard_error"], "there is something to measure"
    assert abs(own["kl"] - truth) < 4 * own["kl/standard_error"]
    assert abs(decoded["kl"] - truth) > 8 * decoded["kl/standard_error"]
