"""Lets a U-Net on a CUDA device use the project's kernels in place of PyTorch's element-wise ones."""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import TYPE_CHECKING

from diffusers.models.activations import GEGLU

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn


def fuse(unet: nn.Module, device: torch.device) -> None:
    """Replace the passes of gated linear units. Weights stay as they are; nothing changes elsewhere than on CUDA.

    What comes out differs from PyTorch's by rounding: it is rounded once, to the base's dtype, instead of twice.
    """
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return
    from duolora.kernels import geglu  # noqa: PLC0415 - needs Triton

    for module in unet.modules():
        if isinstance(module, GEGLU):
            module.forward = partial(_gated, module, geglu)


def _gated(module: nn.Module, geglu: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    """Do what diffusers' `GEGLU.forward` does; its projection may be an adapted one by now."""
    projected: Tensor = module.proj(hidden_states)  # type: ignore[operator]
    return geglu(projected)
