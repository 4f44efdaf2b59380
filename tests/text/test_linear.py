"""Linear and LoRA layers as one operation against PyTorch's and PEFT's."""

import gc
import weakref

import pytest
import torch
from torch import nn

from stages.policies.text import linear
from stages.policies.text.loading import with_adapter
from tests.text import families


def values_and_gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    given = x.clone().requires_grad_(True)
    y = layer(given)
    learns = [p for p in layer.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * y).sum(), [given, *learns])]


def agree(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=0, atol=1e-5 * float(b.abs().max())) for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 48), (4, 48), (3, 9, 48), (2, 0, 48), (64, 48)])
def test_a_linear_layer(shape, bias, learns):
    torch.manual_seed(0)
    layer = nn.Linear(48, 32, bias=bias).requires_grad_(learns)
    x = torch.randn(shape)
    wanted = values_and_gradients(layer, x)
    linear.speed_up(layer)
    assert type(layer).forward is linear._linear
    if x.numel():
        assert agree(values_and_gradients(layer, x), wanted)
    else:
        assert layer(x).shape == (*shape[:-1], 32)


def test_a_lora_layer_and_the_layer_without_its_adapter():
    model = with_adapter(families.build("qwen2", torch.float32), 4)  # biases on some layers
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(5, 7, 32)
    wanted = values_and_gradients(layer, x)
    with model.disable_adapter():
        bare = layer(x)
    linear.speed_up(model)
    assert type(layer).forward is linear._lora
    assert agree(values_and_gradients(layer, x), wanted)
    with model.disable_adapter():
        assert torch.allclose(layer(x), bare, atol=1e-5)
    merged = layer(x)
    model.merge_adapter()
    assert torch.allclose(layer(x), merged, atol=1e-4)


def test_an_adapter_with_dropout_is_left_alone():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(families.build("llama", torch.float32), config)
    linear.speed_up(model)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert type(layer).forward is not linear._lora


def test_other_types_take_the_usual_product():
    layer = nn.Linear(8, 8).double()
    linear.speed_up(layer)
    assert type(layer) is nn.Linear
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(linear.product(x, layer.weight), x @ layer.weight.t())


def test_a_layer_that_is_let_go_is_gone_at_once():
    """Not at the next garbage collection: two models at a time would not fit where one does."""
    layer = nn.Linear(4, 4)
    linear.speed_up(layer)
    gone = weakref.ref(layer)
    gc.disable()
    try:
        del layer
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_gated_block_keeps_its_two_halves_and_not_their_product(family, adapter):
    model = families.build(family, torch.float32)
    if adapter:
        model = with_adapter(model.requires_grad_(False), 4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
    block = model.get_decoder().layers[0].mlp if not adapter else model.get_base_model().model.layers[0].mlp
    x = torch.randn(3, 5, 32)
    wanted = values_and_gradients(block, x)
    linear.speed_up(model)
    assert type(block).forward is linear._gated
    assert agree(values_and_gradients(block, x), wanted)
    kept: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        block(x.requires_grad_(True))
    assert kept.count((15, 48)) == 2  # rows of 48 numbers: gate and up


def test_a_gated_block_without_its_adapter():
    model = with_adapter(families.build("llama", torch.float32), 4)
    block = model.get_base_model().model.layers[0].mlp
    nn.init.normal_(block.down_proj.lora_B["default"].weight)
    x = torch.randn(5, 32)
    with model.disable_adapter():
        bare = block(x)
    linear.speed_up(model)
    with model.disable_adapter():
        assert torch.allclose(block(x), bare, atol=1e-5)
    assert not torch.allclose(block(x), bare, atol=1e-5)


def test_a_block_of_the_same_parts_that_computes_something_else_is_left_alone():
    class Doubled(type(families.build("llama", torch.float32).model.layers[0].mlp)):
        def forward(self, x):
            return 2 * super().forward(x)

    block = families.build("llama", torch.float32).model.layers[0].mlp
    block.__class__ = Doubled
    linear.speed_up(block)
    assert type(block) is Doubled
    assert type(block.up_proj).forward is linear._linear
