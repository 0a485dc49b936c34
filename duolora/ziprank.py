"""ZipRank: merging two LoRAs by masks over their ranks (paper, section 4.1).

    dW = U_c diag(m_c) S_c V_c^T + U_s diag(m_s) S_s V_s^T

R_c, R_s ranks of the two sides; I inputs and O outputs of the layer. Both sides are taken in canonical form, because a
mask on raw factors depends on how the training happened to rotate them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def masked_layer(layer: LoraLayer, mask_R: Tensor, prune_below: float = 0.0) -> LoraLayer | None:
    """Fold a mask into a layer and drop the ranks it switches off; None when no rank is left."""
    keep_R = mask_R.abs() > prune_below
    if not bool(keep_R.any()):
        return None
    scaled_OR = layer.up_OR * (layer.scale * mask_R)
    return LoraLayer(layer.down_RI[keep_R], scaled_OR[:, keep_R], float(keep_R.sum()))


def concatenate(parts: list[LoraLayer]) -> LoraLayer:
    """Return the sum of several changes of one layer as one LoRA layer of the summed rank; exact, no SVD."""
    folded = [part.folded() for part in parts]
    return LoraLayer(
        torch.cat([part.down_RI for part in folded], dim=0),
        torch.cat([part.up_OR for part in folded], dim=1),
        float(sum(part.rank for part in folded)),
    )


def merge_by_masks(
    sides: Mapping[str, LoraWeights], masks: Mapping[str, Mapping[str, Tensor]], prune_below: float = 0.0
) -> LoraWeights:
    """Merge LoRAs exactly as their rank masks say.

    Args:
        sides: side name ("content", "style") -> LoRA in canonical form.
        masks: side name -> layer name -> mask (R,); every layer of the side must have one.
        prune_below: ranks whose mask is not larger in absolute value are dropped.

    Returns:
        One LoRA; a layer's rank is the number of ranks kept from all sides, and layers with none are absent.
    """
    names = sorted({name for weights in sides.values() for name in weights.layers})
    merged: dict[str, LoraLayer] = {}
    for name in names:
        parts = [
            part
            for side, weights in sides.items()
            if name in weights.layers
            and (part := masked_layer(weights.layers[name], masks[side][name], prune_below)) is not None
        ]
        if parts:
            merged[name] = concatenate(parts)
    return LoraWeights(merged)
