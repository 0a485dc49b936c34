"""The factors of all sides of one layer joined along the rank axis, and the pass through them with a mask per sample.

The base's dtype; frozen factors are joined and cast once, not in every pass. Where they are frozen the pass keeps no
input for them, and writes its change into the base's own output: of a merge or a sampling only masks can learn.

J tenants, B samples (J * n), T tokens, M = n * T rows of a tenant, I inputs, O outputs, R joined rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


@dataclass(frozen=True, slots=True, eq=False)
class JoinedFactors:
    """Down and up factors of all sides and tenants; `learns` says that gradients are to reach them."""

    down_JRI: Tensor
    up_JOR: Tensor
    learns: bool

    @classmethod
    def of(cls, downs: Iterable[Tensor], ups: Iterable[Tensor], dtype: torch.dtype, *, learns: bool) -> JoinedFactors:
        """Join (J, R, I) and (J, O, R) of every side; one side alone needs no copy."""
        return cls(_joined(list(downs), 1).to(dtype), _joined(list(ups), 2).to(dtype), learns)

    def __call__(self, x_BTI: Tensor, base: nn.Linear, masks_BR: Tensor | None) -> Tensor:
        """Return the base's output plus the masked change, (B, T, O); None masks nothing."""
        if not self.learns:
            output_BTO: Tensor = _ThroughFrozen.apply(x_BTI, masks_BR, base, self)  # type: ignore[no-untyped-call]
            return output_BTO
        hidden_BTR = _through(x_BTI, self.down_JRI)
        if masks_BR is not None:
            hidden_BTR = hidden_BTR * _over_tokens(masks_BR, x_BTI.ndim)
        change_BTO = _through(hidden_BTR, self.up_JOR)
        return base(x_BTI) + change_BTO  # type: ignore[no-any-return]


class _ThroughFrozen(torch.autograd.Function):
    """A frozen layer and its masked low-rank change; gradients reach the input and the masks."""

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, masks_BR: Tensor | None, base: nn.Linear, factors: JoinedFactors) -> Tensor:  # noqa: ANN401 - torch's record
        tenants = factors.down_JRI.shape[0]
        output_BTO = functional.linear(x_BTI, base.weight, base.bias)
        hidden_BTR = _through(x_BTI, factors.down_JRI)
        masked_BTR = hidden_BTR if masks_BR is None else hidden_BTR * _over_tokens(masks_BR, x_BTI.ndim)
        rows_JMR = masked_BTR.reshape(tenants, -1, masked_BTR.shape[-1])
        output_BTO.view(tenants, -1, output_BTO.shape[-1]).baddbmm_(rows_JMR, factors.up_JOR.mT)
        ctx.base, ctx.factors = base, factors
        ctx.save_for_backward(masks_BR, hidden_BTR if ctx.needs_input_grad[1] else None)
        return output_BTO

    @staticmethod
    def backward(ctx: Any, grad_BTO: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        masks_BR, hidden_BTR = ctx.saved_tensors
        factors: JoinedFactors = ctx.factors
        grad_BTR = _through(grad_BTO, factors.up_JOR.mT)
        masks_grad_BR = None
        if hidden_BTR is not None:
            products_BTR = grad_BTR * hidden_BTR
            masks_grad_BR = (
                products_BTR.flatten(1, -2).sum(1, dtype=torch.float32) if grad_BTR.ndim > 2 else products_BTR
            )
            masks_grad_BR = masks_grad_BR.to(masks_BR.dtype)
        if not ctx.needs_input_grad[0]:
            return None, masks_grad_BR, None, None
        if masks_BR is not None:
            grad_BTR = grad_BTR * _over_tokens(masks_BR, grad_BTR.ndim)
        x_grad_BTI = torch.matmul(grad_BTO, ctx.base.weight)
        tenants = factors.down_JRI.shape[0]
        rows_JMR = grad_BTR.reshape(tenants, -1, grad_BTR.shape[-1])
        x_grad_BTI.view(tenants, -1, x_grad_BTI.shape[-1]).baddbmm_(rows_JMR, factors.down_JRI)
        return x_grad_BTI, masks_grad_BR, None, None


def _through(x_BTI: Tensor, weight_JOI: Tensor) -> Tensor:
    """Send every tenant's samples through its own matrix, (B, T, O)."""
    if weight_JOI.shape[0] == 1:
        return functional.linear(x_BTI, weight_JOI[0])
    rows_JMI = x_BTI.reshape(weight_JOI.shape[0], -1, x_BTI.shape[-1])
    return torch.bmm(rows_JMI, weight_JOI.mT).view(*x_BTI.shape[:-1], weight_JOI.shape[1])


def _over_tokens(masks_BR: Tensor, dimensions: int) -> Tensor:
    """Stretch masks over the tokens of their samples, (B, 1, R); layers of the time embedding see none, (B, R)."""
    return masks_BR.view(-1, *(1,) * (dimensions - 2), masks_BR.shape[1])


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
