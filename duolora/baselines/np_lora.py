"""NP-LoRA: the content change gives way where the style change reads its input (Chen et al. 2025, arXiv 2511.11051).

The style's principal directions V (I, K) are the leading right singular vectors of `dW_s` (section "null space
projection"). The soft projection minimises `|X - dW_c|^2 + mu |X V|^2`, whose solution is

    X = dW_c (I - mu / (1 + mu) V V^T),        dW = dW_s + X

(section "soft projection"). mu = 0 is the plain sum, mu -> infinity the hard projection off the style's row space.
Only the content's down factor changes, so the result is an ordinary LoRA of rank `r_c + r_s`, without any rounding to a
rank. Runs where the factors are, on the CPU: a thin decomposition of (R, I) factors is too small for a GPU.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from duolora.baselines.pairing import merge_layers
from duolora.errors import InvalidConfig
from duolora.lora.canonical import canonical_layer
from duolora.lora.parts import concatenate
from duolora.method.merge_case import CONTENT, STYLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from duolora.lora.weights import LoraLayer, LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase

NO_DIRECTION = 1e-6
"""Singular values below this share of the largest are rounding, not a direction of the style."""


def merge(
    base: DiffusionBase,  # noqa: ARG001 - every rival is called alike
    cases: Sequence[MergeCase],
    *,
    mu: float = 0.5,
    directions: int | None = None,
) -> list[LoraWeights]:
    """Project every content LoRA off its style LoRA's row space and add them.

    Args:
        base: not needed.
        cases: the pairs to merge.
        mu: strength of the projection, 0 or more; `math.inf` projects fully.
        directions: number of leading style directions to keep free; None for all.

    Raises:
        InvalidConfig: mu is negative.
    """
    if mu < 0:
        raise InvalidConfig(f"mu must not be negative; got {mu}")
    strength = 1.0 if math.isinf(mu) else mu / (1 + mu)

    def join(_name: str, parts: Mapping[str, LoraLayer]) -> LoraLayer:
        if CONTENT in parts and STYLE in parts:
            v_KI = row_space(parts[STYLE], directions)
            return concatenate([project(parts[CONTENT], v_KI, strength), parts[STYLE]])
        return concatenate(list(parts.values()))

    return [merge_layers(case, join) for case in cases]


def row_space(layer: LoraLayer, directions: int | None = None) -> Tensor:
    """Return the leading right singular vectors of a layer's change, orthonormal rows, (K, I) float64."""
    scaled_KI = canonical_layer(layer).down_RI.to(torch.float64)  # sqrt(S) V^T
    singular_K = scaled_KI.square().sum(dim=1)
    kept_KI = scaled_KI[singular_K > NO_DIRECTION * singular_K.max()][:directions]
    # The canonical form comes in float32; this makes its directions orthonormal beyond that.
    v_IK: Tensor = torch.linalg.qr(kept_KI.mT)[0]
    return v_IK.mT


def project(layer: LoraLayer, v_KI: Tensor, strength: float) -> LoraLayer:
    """Take `strength` of the directions V out of what a layer reads: `dW (I - strength V V^T)`."""
    down_RI = layer.down_RI.to(torch.float64)
    off_RI = down_RI - strength * (down_RI @ v_KI.mT) @ v_KI
    return layer.with_factors(off_RI.to(torch.float32), layer.up_OR, layer.alpha)
