"""Packed rows against padded ones: values and gradients, on every family of decoder."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.policies import tiny
from stages.policies.text import attention, head, linear, plain
from stages.policies.text.check import agrees
from stages.policies.text.loading import with_adapter
from stages.policies.text.packing import Trees, pack
from stages.policies.text.policy import TextPolicy, TextSettings
from tests.text import families

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # of the largest value
SINGLE = {"cohere": 1e-6}  # its rotations are made in float32 whatever the model's type


def rows(*shape: tuple[int, ...], seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Rows of a prompt and the answers to it, given by their lengths, in a shuffled order."""
    noise = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, families.VOCABULARY, (count,), generator=noise).tolist()

    made = [(prompt, tokens(size)) for first, *rest in shape for prompt in [tokens(first)] for size in rest]
    return [made[i] for i in torch.randperm(len(made), generator=noise)]


RAGGED = ((9, 5, 1, 12), (3, 4), (14, 2, 7), (1, 1))


def priced(policy: TextPolicy, wanted, entropy: bool = False):
    packed = pack(wanted, policy.device)
    told = head.log_probs(policy.hidden(packed), head.of(policy.causal), packed.targets, entropy=entropy)
    return (*packed.unpack(told.logp), packed.unpack(told.entropy)[0] if entropy else None)


def gradients(policy: TextPolicy, logp: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a loss that weighs every token differently."""
    weights = torch.linspace(-1, 1, logp.numel(), dtype=logp.dtype).view_as(logp)
    parameters = policy.parameters()
    found = torch.autograd.grad((weights * logp).sum(), list(parameters.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found)}


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference, in units of the largest value where that is above 1."""
    return float(((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_values_and_gradients_equal_the_padded_ones(family, lora, dtype):
    model = families.build(family, dtype)
    if lora:
        model.requires_grad_(False)
        model = with_adapter(model, lora)
        for name, parameter in model.named_parameters():  # B starts at zero, where A has no gradient
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    policy = TextPolicy(model, families.Tokens())
    wanted = rows(*RAGGED)
    slow = plain.log_probs(policy.model, wanted, policy.pad, entropy=True)
    expected = gradients(policy, slow.logp)
    linear.speed_up(model)
    fast, own, entropy = priced(policy, wanted, entropy=True)
    assert torch.equal(slow.mask, own)
    limit = max(TOLERANCE[dtype], SINGLE.get(family, 0.0))
    assert apart(fast, slow.logp) <= limit
    assert apart(entropy, slow.entropy) <= limit
    for name, gradient in gradients(policy, fast).items():
        assert apart(gradient, expected[name]) <= limit, name


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), min_size=1, max_size=4)), min_size=1, max_size=4
    ).filter(lambda shape: any(any(sizes) for _, sizes in shape)),
    st.sampled_from(["llama", "gemma2"]),
)
def test_any_ragged_batch(shape, family):
    policy = TextPolicy(families.build(family).requires_grad_(False), families.Tokens())
    wanted = rows(*((first, *rest) for first, rest in shape))
    fast, mask, _ = priced(policy, wanted)
    slow = plain.log_probs(policy.model, wanted, policy.pad)
    assert torch.equal(mask, slow.mask)
    assert torch.allclose(fast, slow.logp, rtol=0, atol=1e-9)


def test_a_prompt_stands_once_and_the_last_token_of_an_answer_not_at_all():
    packed = pack([([1, 2, 3], [4, 5]), ([9], [6]), ([1, 2, 3], [7, 8, 9])])
    assert packed.ids.tolist() == [[1, 2, 3, 4, 7, 8, 9]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 3, 4, 0]]
    assert packed.source.tolist() == [2, 3, 6, 2, 4, 5]
    assert packed.targets.tolist() == [4, 5, 6, 7, 8, 9]
    values, mask = packed.unpack(torch.arange(1.0, 7.0))
    assert values.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert mask.sum(1).tolist() == [2, 1, 3]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_the_one_kernel_of_gpus_equals_the_pieces(family, monkeypatch):
    """FlexAttention without a compiler: the same mask, window and soft cap."""
    policy = TextPolicy(families.build(family, torch.float32).requires_grad_(False), families.Tokens())
    wanted = priced(policy, rows(*RAGGED))[0]

    def at_once(trees, layer, query, key, value, scores):
        return trees.at_once(query, key, value, scores)

    monkeypatch.setattr(Trees, "attend", at_once)
    assert torch.allclose(priced(policy, rows(*RAGGED))[0], wanted, rtol=0, atol=1e-5)


def test_an_answer_does_not_see_its_siblings_or_its_neighbours():
    policy = TextPolicy(families.build("llama").requires_grad_(False), families.Tokens())
    alone = priced(policy, [([5, 6, 7], [8, 9, 10])])[0][0]
    others = priced(policy, [([5, 6, 7], [20, 21]), ([40] * 9, [3, 4]), ([5, 6, 7], [8, 9, 10])])[0][2]
    assert torch.allclose(alone, others[:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", families.STATEFUL)
def test_a_model_with_a_state_is_found_out_with_one_warning(family):
    policy = TextPolicy(families.build(family, torch.float32).requires_grad_(False), families.Tokens())
    with pytest.warns(UserWarning, match="cannot price packed rows .*padded batches are used"):
        assert policy.packs() is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy.packs() is False


def test_a_model_whose_attention_sees_its_neighbours_is_found_out(monkeypatch):
    policy = TextPolicy(families.build("llama", torch.float32).requires_grad_(False), families.Tokens())
    assert agrees(policy)
    causal = attention.scaled_dot_product_attention

    def ignores(layout, layer, query, key, value, scores):
        return causal(query, key, value, is_causal=True, scale=scores.scale, enable_gqa=True).transpose(1, 2)

    monkeypatch.setattr(Trees, "attend", ignores)
    with pytest.warns(UserWarning, match="log-probs differ"):
        assert not agrees(policy)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_activation_checkpointing_changes_no_gradient(family, tmp_path):
    families.build(family, torch.float32).save_pretrained(tmp_path)
    tiny.tokenizer(tmp_path)
    found = []
    for checkpointing in (False, True):
        config = TextSettings(gradient_checkpointing=checkpointing)
        policy = TextPolicy.load(tmp_path, config, trainable=True, lora_r=4)
        for name, parameter in policy.parameters().items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        layers = 0

        def count(*args):
            nonlocal layers
            layers += 1

        inside = policy.causal.get_decoder().get_submodule("h.0.attn" if family == "gpt2" else "layers.0.mlp")
        inside.register_forward_pre_hook(count)
        found.append(gradients(policy, priced(policy, rows(*RAGGED))[0]))
        assert layers == 1 + checkpointing, "a checkpointed layer is computed a second time in the backward pass"
    for name, gradient in found[0].items():
        assert torch.allclose(found[1][name], gradient, atol=1e-6), name


def test_dropout_in_a_models_config_is_off_in_training(tmp_path):
    """At step 0 the policy is its reference, whatever the model was pretrained with."""
    model = families.build("gpt2", torch.float32)
    assert model.config.resid_pdrop > 0
    model.save_pretrained(tmp_path)
    tiny.tokenizer(tmp_path)
    learns = TextPolicy.load(tmp_path, trainable=True, lora_r=4)
    still = TextPolicy.load(tmp_path)
    assert learns.model.training
    assert torch.allclose(priced(learns, rows(*RAGGED))[0], priced(still, rows(*RAGGED))[0], atol=1e-5)
