"""diffusers' own U-Net with a base's weights: rivals run what their users run, without the project's kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel

if TYPE_CHECKING:
    from duolora.models.base import DiffusionBase


def stock_unet(base: DiffusionBase) -> UNet2DConditionModel:
    """Return a U-Net as diffusers makes it from the base's configuration, in the base's dtype on its device.

    It shares the memory of the base's weights, all but the convolutions', which it has in PyTorch's usual order.
    """
    ours = base.pipeline.unet
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(ours.config)
    unet.load_state_dict(ours.state_dict(), assign=True)
    unet.to(memory_format=torch.contiguous_format)
    return unet.requires_grad_(False)
