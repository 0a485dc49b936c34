"""What a merge by masks does not touch and carries through: convolutions, text encoders, layers outside transformers.

They are added with plain strengths, exactly: the ranks of all LoRAs behind each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duolora.errors import InvalidLora
from duolora.lora.parts import PARTS_KEY, Parts, join_sides
from duolora.lora.weights import LoraWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

_IN_TRANSFORMER = re.compile(r"^unet\.(.+\.)?attentions\.\d+\.")


@dataclass(frozen=True, slots=True, eq=False)
class SplitLora:
    """A LoRA in two: what a merge decides by masks, and what it carries through; None where there is nothing."""

    by_masks: LoraWeights | None
    carried: LoraWeights | None


def split(lora: LoraWeights) -> SplitLora:
    """Split a LoRA into the linear layers of the U-Net's transformers, which masks decide, and the rest."""
    by_masks = {
        name for name, layer in lora.layers.items() if layer.kernel is None and _IN_TRANSFORMER.search(name) is not None
    }
    return SplitLora(lora.only(by_masks), lora.only(lora.layers.keys() - by_masks))


def split_sides(
    loras: Mapping[str, LoraWeights],
) -> tuple[dict[str, LoraWeights], dict[str, LoraWeights | None]]:
    """Split the LoRAs of a merge: side -> what masks decide, side -> what is carried through.

    Raises:
        InvalidLora: a side has no layer that masks could decide.
    """
    halves = {side: split(lora) for side, lora in loras.items()}
    by_masks: dict[str, LoraWeights] = {}
    for side, half in halves.items():
        if half.by_masks is None:
            raise InvalidLora(
                f"the {side} LoRA changes no linear layer of the U-Net's transformers, so there is nothing to merge by "
                "ranks; train it on the U-Net's attention"
            )
        by_masks[side] = half.by_masks
    return by_masks, {side: half.carried for side, half in halves.items()}


def merge_carried(
    carried: Mapping[str, LoraWeights | None], strengths: Mapping[str, float] | None = None
) -> LoraWeights | None:
    """Add what LoRAs carry beside their transformer layers, each times its strength.

    Args:
        carried: side -> carried part of its LoRA, None where it has none.
        strengths: side -> strength, 1 where absent; a side of strength 0 leaves no ranks.

    Returns:
        One LoRA that says its parts, None when no side carries anything.

    Raises:
        InvalidLora: two sides change one layer in different shapes.
    """
    strengths = strengths or {}
    scaled = {
        side: None if lora is None or strengths.get(side, 1.0) == 0 else lora.scaled(strengths.get(side, 1.0))
        for side, lora in carried.items()
    }
    return join_sides(scaled) if any(lora is not None for lora in scaled.values()) else None


def unite(by_masks: LoraWeights, carried: LoraWeights | None) -> LoraWeights:
    """Put the merged layers and the carried layers into one LoRA; both must say their parts, in the same sides.

    Raises:
        InvalidLora: one does not say its parts.
        ValueError: their sides differ, or they share a layer.
    """
    if carried is None:
        return by_masks
    ours, theirs = Parts.of(by_masks), Parts.of(carried)
    if ours.sides != theirs.sides or by_masks.layers.keys() & carried.layers.keys():
        raise ValueError("merged and carried layers must be distinct and of the same sides")
    words = Parts(ours.sides, {**ours.counts, **theirs.counts}).words()
    layers = {**by_masks.layers, **carried.layers}
    return LoraWeights(layers, {**by_masks.metadata, PARTS_KEY: words})
