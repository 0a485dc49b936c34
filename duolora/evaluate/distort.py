"""Small distortions as an autoencoder and a sampler make them, so that the evaluator learns to look past them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from duolora.tiny.styles import blur

if TYPE_CHECKING:
    from duolora.tiny.world import Dice

# Legend: B pictures, H/W pixels.

BLUR_SIGMA_PX = 1.0
NOISE_DEVIATION = 0.06
BRIGHTNESS = 0.06
CONTRAST = 0.15
SHIFT_PX = 3.0
COARSE_SHARE = 0.25
"""Share of the pictures that lose half their resolution."""


def distort(rgb_B3HW: Tensor, dice: Dice) -> Tensor:
    """Return pictures shifted, blurred, coarsened, changed in contrast and brightness, and noised; clamped to [0,1]."""
    count, side = rgb_B3HW.shape[0], rgb_B3HW.shape[-1]
    rgb_B3HW = _shift(rgb_B3HW, (2 * dice.uniform(count, 2) - 1) * (2 * SHIFT_PX / side))
    softened = blur(rgb_B3HW, BLUR_SIGMA_PX)
    rgb_B3HW = torch.lerp(rgb_B3HW, softened, dice.uniform(count, 1, 1, 1) ** 2)
    halved = functional.avg_pool2d(rgb_B3HW, 2)
    coarse = functional.interpolate(halved, scale_factor=2.0, mode="bilinear", align_corners=False)
    rgb_B3HW = torch.where(dice.uniform(count, 1, 1, 1) < COARSE_SHARE, coarse, rgb_B3HW)
    contrast = 1 + CONTRAST * (2 * dice.uniform(count, 1, 1, 1) - 1)
    brightness = BRIGHTNESS * (2 * dice.uniform(count, 1, 1, 1) - 1)
    rgb_B3HW = (rgb_B3HW - 0.5) * contrast + 0.5 + brightness
    grain = (dice.uniform(*rgb_B3HW.shape) - 0.5) * (12**0.5)  # unit deviation
    rgb_B3HW = rgb_B3HW + NOISE_DEVIATION * dice.uniform(count, 1, 1, 1) ** 2 * grain
    return rgb_B3HW.clamp(0, 1)


def _shift(rgb_B3HW: Tensor, by_B2: Tensor) -> Tensor:
    """Move pictures by fractions of half their side; edges are repeated."""
    one_B, none_B = torch.ones_like(by_B2[:, 0]), torch.zeros_like(by_B2[:, 0])
    across_B3 = torch.stack([one_B, none_B, by_B2[:, 0]], dim=1)
    down_B3 = torch.stack([none_B, one_B, by_B2[:, 1]], dim=1)
    grid = functional.affine_grid(torch.stack([across_B3, down_B3], dim=1), list(rgb_B3HW.shape), align_corners=False)
    return functional.grid_sample(rgb_B3HW, grid, mode="bilinear", padding_mode="border", align_corners=False)
