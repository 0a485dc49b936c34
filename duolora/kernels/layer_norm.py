"""Layer normalisation with the residual addition before it, for frozen weights: sum and normalised sum in one kernel.

The gradient of the sum is in one kernel too: what comes through the normalisation plus what comes past it.

With s = branch + residual, x = (s - mean) rstd, y = w x + b, d = w dy and averages <> over the channels of a row:

    ds = grad past the norm + rstd (d - <d> - x <d x>)

(Ba, Kiros and Hinton 2016, arXiv 1607.06450; the gradient follows by differentiating). What is normalised is the sum as
it is kept, rounded.

N rows, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 2048
"""Numbers of one program, as whole rows; a longer row is one program."""


@triton.jit  # type: ignore[untyped-decorator]
def _place(rows, channels, tile: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return the rows of a program, where its numbers lie, which of them there are, and which channels."""
    row = tl.program_id(0).to(tl.int64) * tile + tl.arange(0, tile)
    column = tl.arange(0, block)
    here = (row < rows)[:, None] & (column < channels)[None, :]
    return row, row[:, None] * channels + column[None, :], here, column


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    branch_ptr,  # noqa: ANN001
    residual_ptr,  # noqa: ANN001
    weight_ptr,  # noqa: ANN001
    bias_ptr,  # noqa: ANN001
    sum_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    statistics_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    channels,  # noqa: ANN001
    eps,  # noqa: ANN001
    adds: tl.constexpr,
    tile: tl.constexpr,
    block: tl.constexpr,
):
    """Sum, normalised sum, and (mean, rstd) of some rows; without `adds` the residual is the sum."""
    row, offset, here, column = _place(rows, channels, tile, block)
    x = tl.load(residual_ptr + offset, mask=here, other=0.0).to(tl.float32)
    if adds:
        kind = sum_ptr.dtype.element_ty
        summed = (x + tl.load(branch_ptr + offset, mask=here, other=0.0).to(tl.float32)).to(kind)
        tl.store(sum_ptr + offset, summed, mask=here)
        x = summed.to(tl.float32)
    mean = tl.sum(x, axis=1) / channels
    centred = tl.where(here, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / channels + eps)
    weight = tl.load(weight_ptr + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    normed = centred * rstd[:, None] * weight + bias
    tl.store(out_ptr + offset, normed.to(out_ptr.dtype.element_ty), mask=here)
    tl.store(statistics_ptr + 2 * row, mean, mask=row < rows)
    tl.store(statistics_ptr + 2 * row + 1, rstd, mask=row < rows)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    sum_ptr,  # noqa: ANN001
    statistics_ptr,  # noqa: ANN001
    weight_ptr,  # noqa: ANN001
    past_ptr,  # noqa: ANN001
    grad_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    rows,  # noqa: ANN001
    channels,  # noqa: ANN001
    tile: tl.constexpr,
    block: tl.constexpr,
):
    """Gradient of the sum of some rows."""
    row, offset, here, column = _place(rows, channels, tile, block)
    mean = tl.load(statistics_ptr + 2 * row, mask=row < rows, other=0.0)[:, None]
    rstd = tl.load(statistics_ptr + 2 * row + 1, mask=row < rows, other=0.0)[:, None]
    weight = tl.load(weight_ptr + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    d = weight * tl.load(grad_ptr + offset, mask=here, other=0.0).to(tl.float32)
    # Zero weights keep channels that are not there out of both averages.
    x = (tl.load(sum_ptr + offset, mask=here, other=0.0).to(tl.float32) - mean) * rstd
    average = (tl.sum(d, axis=1) / channels)[:, None]
    along = (tl.sum(d * x, axis=1) / channels)[:, None]
    past = tl.load(past_ptr + offset, mask=here, other=0.0).to(tl.float32)
    out = past + rstd * (d - average - x * along)
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=here)


class _AddedNorm(torch.autograd.Function):
    """Keeps the sum and two numbers per row."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's record
        branch: Tensor | None,
        residual: Tensor,
        frozen: tuple[Tensor, Tensor, float],
    ) -> tuple[Tensor, Tensor]:
        weight_C, bias_C, eps = frozen
        summed = residual if branch is None else torch.empty_like(residual)
        normed = torch.empty_like(residual)
        statistics_N2 = residual.new_empty(residual.numel() // len(weight_C), 2, dtype=torch.float32)
        tensors = (residual if branch is None else branch, residual, weight_C, bias_C, summed, normed, statistics_N2)
        _forward[_grid(residual)](*tensors, *_sizes(residual), eps, branch is not None, *_tile(residual))
        ctx.save_for_backward(summed, statistics_N2, weight_C)
        return summed, normed

    @staticmethod
    def backward(ctx: Any, past: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        summed, statistics_N2, weight_C = ctx.saved_tensors
        out = torch.empty_like(summed)
        tensors = (summed, statistics_N2, weight_C, past.contiguous(), grad.contiguous(), out)
        _backward[_grid(summed)](*tensors, *_sizes(summed), *_tile(summed))
        return (out if ctx.needs_input_grad[0] else None), out, None


def added_norm(
    branch: Tensor | None, residual: Tensor, weight_C: Tensor, bias_C: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Return branch + residual and its layer normalisation, (..., C) in the residual's dtype; both get gradients.

    Without a branch the residual is the sum: to be used in place of the residual afterwards, so that the gradient past
    the normalisation meets the one through it in the kernel.

    Raises:
        ValueError: the weights want gradients; they would get none.
    """
    if torch.is_grad_enabled() and (weight_C.requires_grad or bias_C.requires_grad):
        raise ValueError("this normalisation is for frozen weights: they ask for a gradient and would get none")
    given, frozen = None if branch is None else branch.contiguous(), (weight_C, bias_C, eps)
    result: tuple[Tensor, Tensor] = _AddedNorm.apply(given, residual.contiguous(), frozen)  # type: ignore[no-untyped-call]
    return result


def _sizes(x: Tensor) -> tuple[int, int]:
    """Return the number of rows and of channels."""
    return x.numel() // x.shape[-1], x.shape[-1]


def _tile(x: Tensor) -> tuple[int, int]:
    """Return the rows of one program, and its channels: the next power of two."""
    block: int = triton.next_power_of_2(x.shape[-1])
    return max(1, TILE // block), block


def _grid(x: Tensor) -> tuple[int]:
    """One program for each tile of rows."""
    return (triton.cdiv(_sizes(x)[0], _tile(x)[0]),)
