"""What is known of a layer's role before any merge: low resolution carries content, high resolution carries style.

Paper, section 4.2. Roles follow from the resolution each layer really runs at, measured on the model, because lists of
layer names match nothing on another model and nobody notices.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import torch

from duolora.errors import LayerGroupEmpty

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class Role(StrEnum):
    """The side that dominates a layer."""

    CONTENT = "content"
    STYLE = "style"


def roles_by_resolution(resolutions: Mapping[str, int]) -> dict[str, Role]:
    """Split layers at the geometric middle of the resolutions they run at.

    Args:
        resolutions: layer name -> side length, in latent pixels, of the feature map the layer works on.

    Returns:
        Layer name -> role. SDXL at 1024 px runs attention at 64 and 32: 64 is style, 32 content.

    Raises:
        LayerGroupEmpty: all layers run at one resolution, so that one side would have none.
    """
    sides = set(resolutions.values())
    if len(sides) < 2:
        raise LayerGroupEmpty(
            f"a prior by resolution needs layers at two resolutions at least; this model has {sorted(sides)}. "
            "Merge on it with start 'ones' and prior 'none'"
        )
    middle = (min(sides) * max(sides)) ** 0.5
    return {name: Role.STYLE if side > middle else Role.CONTENT for name, side in resolutions.items()}


def initial_mask(rank: int, *, dominant: bool, minor_share: float) -> Tensor:
    """Mask at the start of a merge, (R,) float32: all ones on the dominant side, else only the leading share.

    The canonical form orders ranks by singular value, so the leading ranks are the ones that matter most.
    """
    mask_R = torch.ones(rank)
    if not dominant:
        mask_R[round(minor_share * rank) :] = 0.0
    return mask_R


def prior_loss(dominant_R: Tensor, minor_R: Tensor, hinge: float) -> Tensor:
    """L_prior of one layer: |m_dom|_1 + hinge * max(0, |m_minor|_nuc - |m_dom|_nuc) (paper, equation 7).

    Masks are (..., R), the result (...).

    The nuclear norm of a diagonal matrix is the sum of its absolute values. Norms are divided by the rank, so that the
    weight of the term means the same at every rank. The hinge keeps the minor side from outgrowing the dominant one;
    without it the term would be unbounded below.
    """
    dominant = dominant_R.abs().mean(dim=-1)
    minor = minor_R.abs().mean(dim=-1)
    return dominant + hinge * (minor - dominant).clamp(min=0)
