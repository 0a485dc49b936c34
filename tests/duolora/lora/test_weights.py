from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional

from duolora.errors import InvalidLora
from duolora.lora.weights import LoraLayer, LoraWeights
from tests.duolora.pico import random_layer

if TYPE_CHECKING:
    from collections.abc import Callable


def test_delta_is_the_scaled_product_of_the_factors() -> None:
    layer = LoraLayer(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]), alpha=1.0)

    assert layer.rank == 2
    assert layer.scale == 0.5
    assert torch.equal(layer.delta_OI(), torch.tensor([[0.5, 1.0], [0.0, 1.5]]))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 5.0, 16.0])
def test_folding_keeps_the_delta_and_makes_alpha_the_rank(alpha: float) -> None:
    layer = random_layer(6, 7, 5, alpha=alpha)

    folded = layer.folded()

    assert folded.alpha == folded.rank == 5
    torch.testing.assert_close(folded.delta_OI(), layer.delta_OI())
    torch.testing.assert_close(folded.up_OR @ folded.down_RI, layer.delta_OI())  # right for readers without alpha


@pytest.mark.parametrize("alpha", [1.0, 3.0, 64.0])
def test_another_alpha_keeps_the_delta(alpha: float) -> None:
    layer = random_layer(6, 7, 5, alpha=2.0)

    assert layer.with_alpha(alpha).alpha == alpha
    torch.testing.assert_close(layer.with_alpha(alpha).delta_OI(), layer.delta_OI())


def test_delta_of_half_precision_factors_is_computed_in_float32() -> None:
    layer = random_layer(6, 7, 5).to(torch.float16)

    assert layer.delta_OI().dtype == torch.float32
    assert torch.equal(layer.delta_OI(), layer.up_OR.float() @ layer.down_RI.float())


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ((4, 7), (6, 3)),  # ranks differ
        ((4, 7, 1, 1), (6, 4, 1, 1)),  # a convolution
        ((7,), (6,)),
        ((0, 7), (6, 0)),  # rank 0
    ],
)
def test_factors_that_are_no_linear_layer_are_refused(down: tuple[int, ...], up: tuple[int, ...]) -> None:
    with pytest.raises(InvalidLora):
        LoraLayer(torch.zeros(down), torch.zeros(up), 4.0)


@pytest.mark.parametrize("shapes", [((4, 7, 3, 3), (6, 4, 3, 3)), ((4, 7, 3, 3), (6, 4)), ((4, 7, 0, 3), (6, 4, 1, 1))])
def test_factors_that_are_no_convolution_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(InvalidLora):
        LoraLayer.of_convolution(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 4.0)


def test_convolution_changes_the_outputs_as_its_two_convolutions_do() -> None:
    generator = torch.Generator().manual_seed(0)
    down_RIHW = torch.randn(3, 4, 3, 3, generator=generator)
    up_OR11 = torch.randn(5, 3, 1, 1, generator=generator)
    picture_BIHW = torch.randn(2, 4, 8, 8, generator=generator)
    layer = LoraLayer.of_convolution(down_RIHW, up_OR11, alpha=6.0)

    by_delta = functional.conv2d(picture_BIHW, layer.delta_weight(), stride=2, padding=1)

    in_two_steps = functional.conv2d(functional.conv2d(picture_BIHW, down_RIHW, stride=2, padding=1), up_OR11)
    torch.testing.assert_close(by_delta, 2.0 * in_two_steps, rtol=1e-4, atol=1e-4)
    assert layer.weight_shape == (5, 4, 3, 3)
    assert [tuple(factor.shape) for factor in layer.file_factors()] == [(3, 4, 3, 3), (5, 3, 1, 1)]
    assert all(torch.equal(*pair) for pair in zip(layer.file_factors(), (down_RIHW, up_OR11), strict=True))


@pytest.mark.parametrize("change", [lambda x: x.folded(), lambda x: x.scaled(2.0), lambda x: x.to(torch.float16)])
def test_convolution_stays_one(change: Callable[[LoraLayer], LoraLayer]) -> None:
    layer = LoraLayer(torch.ones(2, 18), torch.ones(3, 2), 1.0, (3, 3))

    assert change(layer).weight_shape == (3, 2, 3, 3)


def test_kernel_must_divide_the_inputs() -> None:
    with pytest.raises(InvalidLora, match="whole number"):
        LoraLayer(torch.ones(2, 10), torch.ones(3, 2), 1.0, (3, 3))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alpha_must_be_finite(alpha: float) -> None:
    with pytest.raises(InvalidLora, match="finite"):
        random_layer(3, 3, 1, alpha=alpha)


def test_balancing_rounds_nothing_and_brings_the_factors_together() -> None:
    layer = random_layer(6, 7, 3, scale=0.1)
    tiny = LoraLayer(layer.down_RI, layer.up_OR * 2.0**-20, 3.0)

    balanced = tiny.balanced()

    assert torch.equal(balanced.delta_OI(), tiny.delta_OI())
    assert 0.25 < balanced.up_OR.abs().max() / balanced.down_RI.abs().max() < 4


def test_change_of_nothing_cannot_be_balanced_and_stays() -> None:
    nothing = LoraLayer(torch.ones(2, 3), torch.zeros(4, 2), 2.0)

    assert nothing.balanced() is nothing


@pytest.mark.parametrize("rewrite", [lambda x: x.folded(), lambda x: x.scaled(1.0), lambda x: x.with_alpha(64.0)])
def test_small_factors_of_half_precision_are_not_rounded_away(rewrite: Callable[[LoraLayer], LoraLayer]) -> None:
    layer = random_layer(6, 7, 64, scale=1e-3, alpha=0.01).to(torch.float16)

    delta_OI = layer.delta_OI()

    assert (rewrite(layer).delta_OI() - delta_OI).norm() <= 1e-6 * delta_OI.norm()


def test_lora_without_layers_is_refused() -> None:
    with pytest.raises(InvalidLora, match="without layers"):
        LoraWeights({})


def test_lora_counts_its_numbers_and_ranks() -> None:
    weights = LoraWeights(
        {"unet.a": random_layer(6, 7, 2), "unet.b": random_layer(3, 4, 2), "unet.c": random_layer(5, 5, 1)}
    )

    assert weights.trainable_numbers == 2 * (6 + 7) + 2 * (3 + 4) + 1 * (5 + 5)
    assert weights.common_rank == 2
    assert not weights.has_one_rank
    assert LoraWeights({"unet.a": random_layer(6, 7, 2)}).has_one_rank


def test_metadata_is_added_to_a_copy() -> None:
    weights = LoraWeights({"unet.a": random_layer(6, 7, 2)}, {"modelspec.title": "before"})

    titled = weights.with_metadata(**{"modelspec.title": "after", "duolora.seed": "3"})

    assert titled.metadata == {"modelspec.title": "after", "duolora.seed": "3"}
    assert weights.metadata == {"modelspec.title": "before"}
    assert titled.folded().to(torch.float16).metadata == titled.metadata
