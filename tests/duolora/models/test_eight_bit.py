"""8-bit weights are as near as their step allows, and gradients are those of the rounded weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from duolora.config import TargetLayers
from duolora.memory import PROFILES
from duolora.models.eight_bit import LARGEST, EightBitLinear, restored, rounded
from tests.duolora.pico import pico_base, random_lora

DTYPES = (torch.float32, torch.bfloat16)


@given(
    st.integers(1, 9),
    st.integers(1, 33),
    st.integers(0, 2**32 - 1),
    st.floats(-30, 30),
    st.sampled_from(DTYPES),
)
def test_every_entry_is_off_by_half_a_step_of_its_row_at_most(
    outputs: int, inputs: int, seed: int, exponent: float, dtype: torch.dtype
) -> None:
    """Beside the dtype's own rounding; rows may differ in size by many orders, and be zero."""
    generator = torch.Generator().manual_seed(seed)
    sizes_O1 = 10.0 ** (exponent * torch.rand(outputs, 1, generator=generator))
    sizes_O1[torch.rand(outputs, 1, generator=generator) < 0.2] = 0
    weight_OI = (torch.randn(outputs, inputs, generator=generator) * sizes_O1).to(dtype)

    codes_OI, step_O1 = rounded(weight_OI)
    found_OI = restored(codes_OI, step_O1, dtype)

    assert codes_OI.dtype is torch.int8
    assert int(codes_OI.min()) >= -LARGEST
    largest_O1 = weight_OI.double().abs().amax(dim=1, keepdim=True)
    error_OI = (found_OI.double() - weight_OI.double()).abs()
    # float32 rounds the quotient too, a little before or after the half
    allowed_O1 = largest_O1 * (0.5001 / LARGEST + torch.finfo(dtype).eps) + LARGEST * torch.finfo(torch.float32).tiny
    assert bool((error_OI <= allowed_O1).all())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_layer_computes_and_differentiates_with_the_rounded_weight(*, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 40, bias=bias).to(dtype).requires_grad_(False)
    layer = EightBitLinear(linear)
    x = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
    y = x.detach().clone().requires_grad_()

    found, expected = layer(x), functional.linear(y, layer.weight, linear.bias)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()

    assert torch.equal(found, expected)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    assert layer.weight.dtype is dtype
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_a_pass_keeps_no_whole_weight_for_its_gradient() -> None:
    layer, kept = EightBitLinear(nn.Linear(64, 64, bias=False)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        layer(torch.randn(1, 64, requires_grad=True)).sum()
    assert {tensor.dtype for tensor in kept if tensor.numel() >= 64 * 64} == {torch.int8}


def test_a_base_in_eight_bits_has_the_layers_of_a_whole_one_in_half_the_memory() -> None:
    whole, small = pico_base(), pico_base(memory=PROFILES["8gb"])
    assert small.layers().shapes == whole.layers().shapes
    assert small.target_layers(TargetLayers.TRANSFORMER) == whole.target_layers(TargetLayers.TRANSFORMER)
    for path in whole.target_layers(TargetLayers.TRANSFORMER):
        layer, linear = small.unet.get_submodule(path), whole.unet.get_submodule(path)
        assert isinstance(layer, EightBitLinear)
        held = sum(tensor.numel() * tensor.element_size() for tensor in layer.state_dict().values())
        assert held < 0.5 * linear.weight.numel() * linear.weight.element_size()


def test_a_small_error_of_the_weights_is_a_small_error_of_the_prediction() -> None:
    whole, small = pico_base(), pico_base(memory=PROFILES["8gb"])
    noisy, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    found, expected = (
        base.predict_noise(noisy, timesteps, base.encode_prompts(["a disc", "a ball"])) for base in (small, whole)
    )
    error = float((found - expected).norm() / expected.norm())
    assert 0 < error < 1e-2


def test_loras_of_every_kind_still_attach() -> None:
    base = pico_base(memory=PROFILES["8gb"])
    assert random_lora(base, seed=1).layers.keys() <= base.layers().shapes.keys()
