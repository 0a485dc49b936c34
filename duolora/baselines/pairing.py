"""Walks through the layers that either side of a case changes, so that a rival need only say what to do with one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.lora.weights import LoraWeights
from duolora.method.merge_case import SIDES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duolora.lora.weights import LoraLayer
    from duolora.method.merge_case import MergeCase


def layer_names(case: MergeCase) -> list[str]:
    """Return the names of all layers that either side changes, sorted."""
    return sorted({name for side in SIDES for name in case.loras[side].layers})


def merge_layers(case: MergeCase, combine: Callable[[str, Mapping[str, LoraLayer]], LoraLayer | None]) -> LoraWeights:
    """Build one LoRA layer by layer.

    Args:
        case: the two LoRAs.
        combine: given a layer's name and the parts of the sides that change it, with alpha = rank, returns the merged
            layer, or None when nothing of it is left.

    Raises:
        InvalidLora: nothing is left of any layer.
    """
    merged: dict[str, LoraLayer] = {}
    for name in layer_names(case):
        parts = {side: case.loras[side].layers[name].folded() for side in SIDES if name in case.loras[side].layers}
        layer = combine(name, parts)
        if layer is not None:
            merged[name] = layer
    return LoraWeights(merged)
