"""Frozen linear layers held as 8-bit integers: half the memory of bf16, for cards that cannot hold more.

Every row of a weight has its own step, the row's largest absolute value over 127 (symmetric rounding to nearest, as
"absmax" in Dettmers et al. 2022, arXiv 2208.07339, section 2): an entry is off by half a step at most, before rounding
to the dtype of the pass. The weight is put together anew for every product, in the forward pass and in the backward
one, so that autograd keeps the integers only.

O outputs, I inputs.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LARGEST = 127
"""The integers are -127 to 127."""

_IN_TRANSFORMER = re.compile(r"(^|\.)attentions\.\d+\.")
"""Layers that LoRAs never change in place (`duolora.lora.carry` leaves them to adapters), and nearly all there is."""


class EightBitLinear(nn.Linear):
    """A frozen linear layer that computes from 8-bit integers; still an `nn.Linear` to whoever adapts it."""

    def __init__(self, linear: nn.Linear) -> None:
        """Take over a layer's weight, rounded, and its bias as it is, on the layer's device."""
        nn.Module.__init__(self)  # not nn.Linear's, which would make a whole weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype = linear.weight.dtype
        codes_OI, step_O1 = rounded(linear.weight.detach())
        self.codes_OI = nn.Buffer(codes_OI)
        self.step_O1 = nn.Buffer(step_O1)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that the layer computes with, (O, I) in the dtype of the passes; made anew for each call."""
        return restored(self.codes_OI, self.step_O1, self.compute_dtype)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name, which callers may use
        """Return what the rounded weight gives, (..., O)."""
        output: Tensor = _Product.apply(input, self.codes_OI, self.step_O1, self.bias)  # type: ignore[no-untyped-call]
        return output


def rounded(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight to integers (O, I) int8 and the step of each row, (O, 1) float32; a row of zeros has step 0."""
    weight_OI = weight_OI.float()
    step_O1 = weight_OI.abs().amax(dim=1, keepdim=True) / LARGEST
    # A step too small to divide by belongs to a row that is zero, or as good as that.
    divisor_O1 = step_O1.clamp_min(torch.finfo(torch.float32).tiny)
    codes_OI = (weight_OI / divisor_O1).round().clamp(-LARGEST, LARGEST)
    return codes_OI.to(torch.int8), step_O1


def restored(codes_OI: Tensor, step_O1: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight (O, I) that integers and steps stand for."""
    return (codes_OI * step_O1).to(dtype)


class _Product(torch.autograd.Function):
    """The product with a frozen 8-bit weight; the bias is frozen too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes_OI: Tensor, step_O1: Tensor, bias_O: Tensor | None) -> Tensor:  # noqa: ANN401 - torch's record
        ctx.save_for_backward(codes_OI, step_O1)
        return functional.linear(x, restored(codes_OI, step_O1, x.dtype), bias_O)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        codes_OI, step_O1 = ctx.saved_tensors
        return grad @ restored(codes_OI, step_O1, grad.dtype), None, None, None


def hold_in_eight_bits(unet: nn.Module, device: torch.device) -> None:
    """Replace the linear layers of a U-Net's transformers, one after another on the device that rounds them.

    Convert the U-Net to its dtype before, and no more afterwards: the steps must stay in float32.
    """
    for path, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear) and not isinstance(module, EightBitLinear) and _IN_TRANSFORMER.search(path):
            parent_path, _, attribute = path.rpartition(".")
            setattr(unet.get_submodule(parent_path), attribute, EightBitLinear(module.to(device)))
