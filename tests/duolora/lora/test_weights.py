from __future__ import annotations

import pytest
import torch

from duolora.errors import InvalidLora
from duolora.lora.weights import LoraLayer, LoraWeights
from tests.duolora.pico import random_layer


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
