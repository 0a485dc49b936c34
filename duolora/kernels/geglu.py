"""Gated linear units: value * gelu(gate) in one kernel, and both gradients in another.

N rows, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Channels of one program."""


@triton.jit  # type: ignore[untyped-decorator]
def _geglu(joined_ptr, out_ptr, channels, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Out = value * gelu(gate) of one row of (value, gate)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < channels
    start = joined_ptr + row * 2 * channels
    value = tl.load(start + column, mask=inside).to(tl.float32)
    gate = tl.load(start + channels + column, mask=inside).to(tl.float32)
    gelu = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(out_ptr + row * channels + column, (value * gelu).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _geglu_backward(joined_ptr, grad_ptr, out_ptr, channels, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Gradients of (value, gate) of one row, side by side as they are."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    inside = column < channels
    start = joined_ptr + row * 2 * channels
    value = tl.load(start + column, mask=inside).to(tl.float32)
    gate = tl.load(start + channels + column, mask=inside).to(tl.float32)
    grad = tl.load(grad_ptr + row * channels + column, mask=inside).to(tl.float32)
    below = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    place = out_ptr + row * 2 * channels + column
    kind = out_ptr.dtype.element_ty
    tl.store(place, (grad * gate * below).to(kind), mask=inside)
    tl.store(place + channels, (grad * value * (below + gate * density)).to(kind), mask=inside)


class _Geglu(torch.autograd.Function):
    """Keeps its input only; PyTorch's own keeps the gate's GELU beside it."""

    @staticmethod
    def forward(ctx: Any, joined: Tensor) -> Tensor:  # noqa: ANN401 - torch's record
        ctx.save_for_backward(joined)
        channels = joined.shape[-1] // 2
        out = joined.new_empty(*joined.shape[:-1], channels)
        _geglu[_grid(out, channels)](joined, out, channels, BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        (joined,) = ctx.saved_tensors
        channels = joined.shape[-1] // 2
        out = torch.empty_like(joined)
        _geglu_backward[_grid(grad, channels)](joined, grad.contiguous(), out, channels, BLOCK)
        return out


def geglu(joined: Tensor) -> Tensor:
    """Return value * gelu(gate), (..., C), of values and gates side by side, (..., 2 C) (Shazeer 2020, exact GELU)."""
    result: Tensor = _Geglu.apply(joined.contiguous())  # type: ignore[no-untyped-call]
    return result


def _grid(out: Tensor, channels: int) -> tuple[int, int]:
    """One program for each block of channels of each row."""
    return out.numel() // channels, triton.cdiv(channels, BLOCK)
