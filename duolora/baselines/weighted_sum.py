"""The weighted sum: `dW = w_c dW_c + w_s dW_s`, what diffusers' `set_adapters` does with two loaded LoRAs.

Source: ZipLoRA (Shah et al. 2023, arXiv 2311.13600), section 4, "direct arithmetic merge"; the evaluation sweeps both
weights. The result is exact, of rank `r_c + r_s`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from duolora.baselines.pairing import merge_layers
from duolora.lora.parts import concatenate
from duolora.method.merge_case import CONTENT, STYLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duolora.lora.weights import LoraLayer, LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


def merge(
    base: DiffusionBase,  # noqa: ARG001 - every rival is called alike
    cases: Sequence[MergeCase],
    *,
    content_weight: float = 1.0,
    style_weight: float = 1.0,
) -> list[LoraWeights]:
    """Add the two LoRAs of every case with a weight each; a side of weight 0 leaves the result.

    Raises:
        InvalidLora: both weights are 0, so that nothing is left.
    """
    weights = {CONTENT: content_weight, STYLE: style_weight}

    def add(_name: str, parts: Mapping[str, LoraLayer]) -> LoraLayer | None:
        kept = [part.scaled(weights[side]) for side, part in parts.items() if weights[side] != 0]
        return concatenate(kept) if kept else None

    return [merge_layers(case, add) for case in cases]
