"""ZipRank: merging two LoRAs by masks over their ranks (paper, section 4.1).

    dW = U_c diag(m_c) S_c V_c^T + U_s diag(m_s) S_s V_s^T

R_c, R_s ranks of the two sides; I inputs and O outputs of the layer. Both sides are taken in canonical form, because a
mask on raw factors depends on how the training happened to rotate them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.lora.parts import join_sides
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
    if bool(keep_R.all()):  # the usual case, without copies
        return layer.with_factors(layer.down_RI, scaled_OR)
    return layer.with_factors(layer.down_RI[keep_R], scaled_OR[:, keep_R])


def merge_by_masks(
    sides: Mapping[str, LoraWeights], masks: Mapping[str, Mapping[str, Tensor]], prune_below: float = 0.0
) -> LoraWeights:
    """Merge LoRAs exactly as their rank masks say.

    Args:
        sides: side name ("content", "style") -> LoRA in canonical form.
        masks: side name -> layer name -> mask (R,); every layer of the side must have one.
        prune_below: ranks whose mask is not larger in absolute value are dropped.

    Returns:
        One LoRA that says which ranks are whose (`duolora.lora.parts`); a layer's rank is the number of ranks kept from
        all sides, and layers with none are absent.
    """
    return join_sides({side: _masked(weights, masks[side], prune_below) for side, weights in sides.items()})


def _masked(weights: LoraWeights, masks: Mapping[str, Tensor], prune_below: float) -> LoraWeights | None:
    """Fold the masks of one side into its layers; None when no rank is left."""
    kept = {name: masked_layer(layer, masks[name], prune_below) for name, layer in weights.layers.items()}
    left = {name: layer for name, layer in kept.items() if layer is not None}
    return LoraWeights(left) if left else None
