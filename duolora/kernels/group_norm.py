"""Group normalisation with SiLU behind it, for channels-last pictures and frozen weights.

Convolutions want channels last; PyTorch's normalisation does not, so that pictures were turned over twice around every
convolution. Three small kernels each way: sums per channel, coefficients per group, and one pass that applies them.

With z = a x + b, a = w rstd, b = bias - mean a, y = silu(z) or z, M values in a group and d = dy * dz/dy:

    dx = a d - rstd^2 x_centred S2 / M - rstd S1 / M,    S1 = sum w d,    S2 = sum w d x_normed

which is a d - k1 x + k0 with two numbers per group (Wu and He 2018; the gradient follows by differentiating).

N pictures, H W their size (rows of a picture), C channels, G groups.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, CHANNELS = 32, 64
"""Tile of one load: places of a picture, channels."""
CHUNKS = 32
"""Parts that a picture's places are summed in."""


@triton.jit  # type: ignore[untyped-decorator]
def _slope(x, a, b, silu: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Return dy/dz at z = a x + b."""
    slope = x * 0.0 + 1.0
    if silu:
        z = a * x + b
        sigmoid = 1.0 / (1.0 + tl.exp(-z))
        slope = sigmoid * (1.0 + z * (1.0 - sigmoid))
    return slope


@triton.jit  # type: ignore[untyped-decorator]
def _sums(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    x_ptr,  # noqa: ANN001
    grad_ptr,  # noqa: ANN001
    a_ptr,  # noqa: ANN001
    b_ptr,  # noqa: ANN001
    sums_ptr,  # noqa: ANN001
    places,  # noqa: ANN001
    channels,  # noqa: ANN001
    chunk: tl.constexpr,
    backward: tl.constexpr,
    silu: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    """Sum over one chunk of places, per channel: x and x^2 forward, d and d x backward; (N, chunks, 2, C)."""
    picture = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    column = tl.program_id(2) * block + tl.arange(0, block)
    inside = column < channels
    first = tl.zeros([block], dtype=tl.float32)
    second = tl.zeros([block], dtype=tl.float32)
    if backward:
        a = tl.load(a_ptr + picture * channels + column, mask=inside, other=0.0)[None, :]
        b = tl.load(b_ptr + picture * channels + column, mask=inside, other=0.0)[None, :]
    for start in range(0, chunk, rows):
        row = part * chunk + start + tl.arange(0, rows)
        here = (row < places)[:, None] & (start + tl.arange(0, rows) < chunk)[:, None] & inside[None, :]
        offset = (picture * places + row)[:, None] * channels + column[None, :]
        x = tl.load(x_ptr + offset, mask=here, other=0.0).to(tl.float32)
        if backward:
            d = tl.load(grad_ptr + offset, mask=here, other=0.0).to(tl.float32) * _slope(x, a, b, silu)
            first += tl.sum(d, axis=0)
            second += tl.sum(d * x, axis=0)
        else:
            first += tl.sum(x, axis=0)
            second += tl.sum(x * x, axis=0)
    place = sums_ptr + (picture * tl.num_programs(1) + part) * 2 * channels + column
    tl.store(place, first, mask=inside)
    tl.store(place + channels, second, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _coefficients(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    sums_ptr,  # noqa: ANN001
    weight_ptr,  # noqa: ANN001
    bias_ptr,  # noqa: ANN001
    a_ptr,  # noqa: ANN001
    b_ptr,  # noqa: ANN001
    group_ptr,  # noqa: ANN001
    places,  # noqa: ANN001
    channels,  # noqa: ANN001
    each,  # noqa: ANN001
    eps,  # noqa: ANN001
    backward: tl.constexpr,
    chunks: tl.constexpr,
    block: tl.constexpr,
):
    """Forward: mean and rstd of a group, a and b of its channels. Backward: k1 and k0 of the group, in their place."""
    picture = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    column = group * each + tl.arange(0, block)
    inside = tl.arange(0, block) < each
    part = tl.arange(0, chunks)
    place = sums_ptr + (picture * chunks + part)[:, None] * 2 * channels + column[None, :]
    first = tl.sum(tl.load(place, mask=inside[None, :], other=0.0), axis=0)
    second = tl.sum(tl.load(place + channels, mask=inside[None, :], other=0.0), axis=0)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    count = places * each * 1.0
    own = group_ptr + (picture * tl.num_programs(1) + group) * 4
    if backward:
        mean = tl.load(own)
        rstd = tl.load(own + 1)
        summed = tl.sum(weight * first, axis=0)
        turned = tl.sum(weight * (second - mean * first), axis=0) * rstd
        k1 = rstd * rstd * turned / count
        tl.store(own + 2, k1)
        tl.store(own + 3, k1 * mean - rstd * summed / count)
    else:
        mean = tl.sum(first, axis=0) / count
        variance = tl.maximum(tl.sum(second, axis=0) / count - mean * mean, 0.0)
        rstd = 1.0 / tl.sqrt(variance + eps)
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(own, mean)
        tl.store(own + 1, rstd)
        tl.store(a_ptr + picture * channels + column, weight * rstd, mask=inside)
        tl.store(b_ptr + picture * channels + column, bias - mean * weight * rstd, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _apply(  # type: ignore[no-untyped-def]  # noqa: ANN202, PLR0917
    x_ptr,  # noqa: ANN001
    grad_ptr,  # noqa: ANN001
    a_ptr,  # noqa: ANN001
    b_ptr,  # noqa: ANN001
    group_ptr,  # noqa: ANN001
    out_ptr,  # noqa: ANN001
    places,  # noqa: ANN001
    channels,  # noqa: ANN001
    each,  # noqa: ANN001
    backward: tl.constexpr,
    silu: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    """Forward: y of one tile. Backward: dx of one tile."""
    picture = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * rows + tl.arange(0, rows)
    column = tl.program_id(2) * block + tl.arange(0, block)
    inside = column < channels
    here = (row < places)[:, None] & inside[None, :]
    offset = (picture * places + row)[:, None] * channels + column[None, :]
    x = tl.load(x_ptr + offset, mask=here, other=0.0).to(tl.float32)
    a = tl.load(a_ptr + picture * channels + column, mask=inside, other=0.0)[None, :]
    b = tl.load(b_ptr + picture * channels + column, mask=inside, other=0.0)[None, :]
    if backward:
        own = group_ptr + (picture * (channels // each) + column // each) * 4
        k1 = tl.load(own + 2, mask=inside, other=0.0)[None, :]
        k0 = tl.load(own + 3, mask=inside, other=0.0)[None, :]
        d = tl.load(grad_ptr + offset, mask=here, other=0.0).to(tl.float32) * _slope(x, a, b, silu)
        out = a * d - k1 * x + k0
    else:
        out = a * x + b
        if silu:
            out = out / (1.0 + tl.exp(-out))
    tl.store(out_ptr + offset, out.to(out_ptr.dtype.element_ty), mask=here)


class _GroupNorm(torch.autograd.Function):
    """Keeps its input and two numbers per channel."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's record
        x_NCHW: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        settings: tuple[int, float, bool],
    ) -> Tensor:
        groups, eps, silu = settings
        pictures, channels = x_NCHW.shape[:2]
        sums = x_NCHW.new_empty(pictures, CHUNKS, 2, channels, dtype=torch.float32)
        a_NC, b_NC = (x_NCHW.new_empty(pictures, channels, dtype=torch.float32) for _ in range(2))
        of_group_NG4 = x_NCHW.new_empty(pictures, groups, 4, dtype=torch.float32)
        out_NCHW = torch.empty_like(x_NCHW)
        work = _Work(x_NCHW, x_NCHW, sums, a_NC, b_NC, of_group_NG4, weight_C, bias_C, out_NCHW)
        work.run(eps, backward=False, silu=silu)
        ctx.save_for_backward(x_NCHW, a_NC, b_NC, of_group_NG4, weight_C, bias_C)
        ctx.silu = silu
        return out_NCHW

    @staticmethod
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x_NCHW, a_NC, b_NC, of_group_NG4, weight_C, bias_C = ctx.saved_tensors
        pictures, channels = x_NCHW.shape[:2]
        grad_NCHW = grad_NCHW.contiguous(memory_format=torch.channels_last)
        sums = x_NCHW.new_empty(pictures, CHUNKS, 2, channels, dtype=torch.float32)
        out_NCHW = torch.empty_like(x_NCHW)
        work = _Work(x_NCHW, grad_NCHW, sums, a_NC, b_NC, of_group_NG4, weight_C, bias_C, out_NCHW)
        work.run(0.0, backward=True, silu=ctx.silu)
        return out_NCHW, None, None, None


class _Work:
    """The memory of one normalisation, and its three launches."""

    def __init__(self, *tensors: Tensor) -> None:
        self._x, self._grad, self._sums, self._a, self._b, self._of_group, self._weight, self._bias, self._out = tensors

    def run(self, eps: float, *, backward: bool, silu: bool) -> None:
        """Launch the sums, the coefficients and their application."""
        pictures, channels, height, width = self._x.shape
        places, groups = height * width, self._of_group.shape[1]
        each, columns = channels // groups, triton.cdiv(channels, CHANNELS)
        chunk = triton.cdiv(places, CHUNKS)
        _sums[pictures, CHUNKS, columns](
            self._x, self._grad, self._a, self._b, self._sums, places, channels, chunk, backward, silu, ROWS, CHANNELS
        )
        _coefficients[pictures, groups](
            self._sums,
            self._weight,
            self._bias,
            self._a,
            self._b,
            self._of_group,
            places,
            channels,
            each,
            eps,
            backward,
            CHUNKS,
            triton.next_power_of_2(each),
        )
        _apply[pictures, triton.cdiv(places, ROWS), columns](
            self._x,
            self._grad,
            self._a,
            self._b,
            self._of_group,
            self._out,
            places,
            channels,
            each,
            backward,
            silu,
            ROWS,
            CHANNELS,
        )


def group_norm(x_NCHW: Tensor, weight_C: Tensor, bias_C: Tensor, *, groups: int, eps: float, silu: bool) -> Tensor:
    """Normalise channels-last pictures by groups, then SiLU if asked; the input alone gets a gradient."""
    settings = (groups, eps, silu)
    result: Tensor = _GroupNorm.apply(x_NCHW, weight_C, bias_C, settings)  # type: ignore[no-untyped-call]
    return result
