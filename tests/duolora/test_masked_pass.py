"""A masked pass of the rank-space adapter against dense weights; `test_adapters` has how it attaches and learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from duolora.adapters import RankSpaceAdapter
from duolora.lora.canonical import canonicalise
from duolora.lora.weights import LoraLayer, LoraWeights
from tests.duolora.pico import random_layer, random_lora

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from duolora.models.base import DiffusionBase, PromptEmbeddings

CPU = torch.device("cpu")
SIDES = ("content", "style")


def inputs(base: DiffusionBase) -> tuple[Tensor, Tensor, PromptEmbeddings]:
    """Noised latents, timesteps and prompts of two samples."""
    noisy_BCHW = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return noisy_BCHW, torch.tensor([50, 700]), base.encode_prompts(["one picture", "another"])


class Found(NamedTuple):
    """What an adapted layer returned, and the layer without its adapter."""

    output: Tensor
    layer: nn.Linear


def masked_pass(seed: int, layers: Sequence[LoraLayer], masks: Sequence[Tensor]) -> tuple[Tensor, Found]:
    """Send random inputs through one adapted layer, in float64; the inputs (B, T, I) and what came of them."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(8, 6, dtype=torch.float64)
    x_BTI = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    model = nn.ModuleDict({"layer": linear})
    sides = {side: LoraWeights({"unet.layer": layer}) for side, layer in zip(SIDES, layers, strict=True)}
    with RankSpaceAdapter(sides).inject(model) as adapter, torch.no_grad():
        adapter.learn_masks({side: {"unet.layer": mask_R} for side, mask_R in zip(SIDES, masks, strict=True)})
        adapter.assign_all(adapter.merged, 2)
        return x_BTI, Found(model["layer"](x_BTI), linear)


def dense(layer: LoraLayer, mask_R: Tensor) -> Tensor:
    """The masked change as a matrix, (O, I) float64."""
    return layer.scale * (layer.up_OR.double() * mask_R.double()) @ layer.down_RI.double()


@given(seed=st.integers(0, 2**31 - 1), ranks=st.tuples(st.integers(1, 5), st.integers(1, 5)), data=st.data())
@settings(deadline=None, derandomize=True, max_examples=40)
def test_masked_pass_is_the_dense_weight_plus_the_masked_changes(
    seed: int, ranks: tuple[int, int], data: st.DataObject
) -> None:
    """In float64, where only the order of sums may differ: x (W + sum of up diag(m) down)^T, exactly."""
    numbers = st.floats(-2, 2, width=32)
    masks = [torch.tensor(data.draw(st.lists(numbers, min_size=rank, max_size=rank))) for rank in ranks]
    layers = [random_layer(6, 8, rank, seed=seed + index) for index, rank in enumerate(ranks)]
    x_BTI, found = masked_pass(seed, layers, masks)

    weight = found.layer.weight + sum(dense(layer, mask_R) for layer, mask_R in zip(layers, masks, strict=True))
    torch.testing.assert_close(
        found.output, nn.functional.linear(x_BTI, weight, found.layer.bias), rtol=1e-12, atol=1e-11
    )


def test_all_ones_are_the_exact_sum() -> None:
    layers = [random_layer(6, 8, 3, seed=1), random_layer(6, 8, 2, seed=2)]
    x_BTI, found = masked_pass(5, layers, [torch.ones(3), torch.ones(2)])

    changes_OI = sum(dense(layer, torch.ones(layer.rank)) for layer in layers)
    expected = found.layer(x_BTI) + nn.functional.linear(x_BTI, changes_OI)
    torch.testing.assert_close(found.output, expected, rtol=1e-12, atol=1e-11)


def test_zero_masks_leave_a_whole_model_as_it_is(base: DiffusionBase) -> None:
    sides = {side: random_lora(base, seed=role, ranks=(3,)) for role, side in enumerate(SIDES)}
    given_inputs = inputs(base)
    zeros = {
        side: {name: torch.zeros(layer.rank) for name, layer in weights.layers.items()}
        for side, weights in sides.items()
    }
    with torch.no_grad():
        expected = base.predict_noise(*given_inputs)
        with RankSpaceAdapter(sides).inject(base.unet) as adapter:
            adapter.learn_masks(zeros)
            adapter.assign_all(adapter.merged, 2)
            masked = base.predict_noise(*given_inputs)

    assert torch.equal(masked, expected)


@pytest.mark.parametrize("kept", [1, 3])
def test_masking_all_but_the_leading_ranks_is_truncating_the_factors(base: DiffusionBase, kept: int) -> None:
    """In canonical form, so that what is left is the best change of that rank."""
    lora, given_inputs = canonicalise(random_lora(base, seed=4, ranks=(4,))), inputs(base)
    leading = {name: (torch.arange(layer.rank) < kept).float() for name, layer in lora.layers.items()}
    truncated = LoraWeights(
        {name: layer.with_factors(layer.down_RI[:kept], layer.up_OR[:, :kept]) for name, layer in lora.layers.items()}
    )
    with torch.no_grad():
        with RankSpaceAdapter({"content": lora}).inject(base.unet) as adapter:
            adapter.learn_masks({"content": leading})
            adapter.assign_all(adapter.merged, 2)
            masked = base.predict_noise(*given_inputs)
        with RankSpaceAdapter({"content": truncated}).inject(base.unet) as adapter:
            adapter.assign_all(0, 2)
            cut = base.predict_noise(*given_inputs)

    torch.testing.assert_close(masked, cut, rtol=1e-4, atol=1e-5)
