"""What a LoRA does to a weight, computed densely in float64: the reference that merges and files are held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from duolora.lora.weights import LoraLayer, LoraWeights
    from duolora.method.merge_case import MergeCase


def dense(layer: LoraLayer) -> Tensor:
    return (layer.alpha / layer.down_RI.shape[0]) * (layer.up_OR.double() @ layer.down_RI.double())


def side_dense(case: MergeCase, side: str, name: str, like: Tensor) -> Tensor:
    """The change of one side, zero where it has none."""
    layers = case.loras[side].layers
    return dense(layers[name]) if name in layers else torch.zeros_like(like)


def difference(found: LoraLayer, expected: LoraLayer) -> float:
    """Norm of the difference of two changes, as a share of the expected one's."""
    expected_OI = dense(expected)
    return float((dense(found) - expected_OI).norm() / expected_OI.norm().clamp(min=1e-9))


def assert_same_change(found: LoraWeights, expected: LoraWeights, tolerance: float) -> None:
    """Both LoRAs change the same layers by the same amount, as a share of each layer's size."""
    assert found.layers.keys() == expected.layers.keys()
    for name, layer in expected.layers.items():
        error = difference(found.layers[name], layer)
        assert error <= tolerance, f"{name}: relative error {error:.1e}"
