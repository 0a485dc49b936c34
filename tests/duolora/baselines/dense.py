"""What a LoRA does to a weight, computed densely in float64: the reference that the rivals are held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from duolora.lora.weights import LoraLayer, LoraWeights
    from duolora.merge_case import MergeCase


def dense(layer: LoraLayer) -> Tensor:
    return (layer.alpha / layer.down_RI.shape[0]) * (layer.up_OR.double() @ layer.down_RI.double())


def side_dense(case: MergeCase, side: str, name: str, like: Tensor) -> Tensor:
    """The change of one side, zero where it has none."""
    layers = case.loras[side].layers
    return dense(layers[name]) if name in layers else torch.zeros_like(like)


def assert_same_change(left: LoraWeights, right: LoraWeights, tolerance: float) -> None:
    """Both LoRAs change the same layers by the same amount, as a share of each layer's size."""
    assert set(left.layers) == set(right.layers)
    for name, layer in left.layers.items():
        expected = dense(right.layers[name])
        assert (dense(layer) - expected).norm() <= tolerance * expected.norm(), name
