"""Training's short way through the rank-space adapter: the samples of each side meet that side's factors only.

Masks over joined ranks serve any mixture of roles, but compute every sample's product with every side's factors and
throw most of it away. In a training the samples of a side stand together and all sides have equally many: their
products are one batched one, without masks. The factors are read from copies in the base's own dtype, made once a step
for all layers, and their gradients are written to memory that stays in place, so that a whole step can be recorded.

J tenants, S sides, G = J * s groups of samples (tenant after tenant, side after side), M rows of a group (samples times
tokens), B = G * n samples, T tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn


def side_span(rows: Sequence[int], tenants: int, sides: int) -> slice | None:
    """Return the sides that samples of these roles stand for, if every tenant has them in order and equally often.

    With several tenants that must be all sides, whose factors lie side by side in memory. None: the samples are mixed
    otherwise, or of a role that is no side.
    """
    each = len(rows) // tenants
    own = list(rows[:each])
    first, last = (own[0], own[-1]) if own else (0, -1)
    count = last - first + 1
    if count < 1 or last >= sides or each % count or list(rows) != own * tenants:
        return None
    in_order = [side for side in range(first, last + 1) for _ in range(each // count)]
    if own != in_order or (tenants > 1 and count < sides):
        return None
    return slice(first, last + 1)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedLayer:
    """The factors of all sides of one layer in the base's dtype, and where their gradients go; shapes (J, S, ...)."""

    down_JSRI: Tensor
    up_JSOR: Tensor
    down_grad_JSRI: Tensor
    up_grad_JSOR: Tensor

    @classmethod
    def of(cls, downs: Mapping[str, nn.Parameter], ups: Mapping[str, nn.Parameter], dtype: torch.dtype) -> GroupedLayer:
        """Copy the factors of all sides, (J, R, I) and (J, O, R) each, all of one rank."""
        down_JSRI = torch.stack([down_JRI.detach() for down_JRI in downs.values()], dim=1).to(dtype)
        up_JSOR = torch.stack([up_JOR.detach() for up_JOR in ups.values()], dim=1).to(dtype)
        return cls(down_JSRI, up_JSOR, torch.zeros_like(down_JSRI), torch.zeros_like(up_JSOR))

    def __call__(self, x_BTI: Tensor, base: nn.Linear, span: slice, anchor: Tensor) -> Tensor:
        """Return the frozen layer's output plus each group's change, (B, T, O); `anchor` is any tensor that learns."""
        factors = (self.down_JSRI, self.up_JSOR, self.down_grad_JSRI, self.up_grad_JSOR)
        groups = _Groups(*(tensor[:, span].flatten(0, 1) for tensor in factors))
        output_BTO: Tensor = _Through.apply(x_BTI, anchor, base, groups)  # type: ignore[no-untyped-call]
        return output_BTO


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Views of a layer's factors and of where their gradients go, one row per group."""

    down_GRI: Tensor
    up_GOR: Tensor
    down_grad_GRI: Tensor
    up_grad_GOR: Tensor


class _Through(torch.autograd.Function):
    """A frozen linear layer and the low-rank change of every group; gradients of the factors go to given memory.

    They replace what was there: one pass a step. Autograd hears of the input's gradient only.
    """

    @staticmethod
    def forward(ctx: Any, x_BTI: Tensor, _anchor: Tensor, base: nn.Linear, groups: _Groups) -> Tensor:  # noqa: ANN401 - torch's record
        count, _, inputs = groups.down_GRI.shape
        output_BTO = functional.linear(x_BTI, base.weight, base.bias)
        x_GMI = x_BTI.reshape(count, -1, inputs)
        hidden_GMR = torch.bmm(x_GMI, groups.down_GRI.mT)
        output_BTO.view(count, -1, output_BTO.shape[-1]).baddbmm_(hidden_GMR, groups.up_GOR.mT)
        ctx.save_for_backward(x_GMI, hidden_GMR)
        ctx.base, ctx.groups, ctx.shape = base, groups, x_BTI.shape
        return output_BTO

    @staticmethod
    def backward(ctx: Any, grad_BTO: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x_GMI, hidden_GMR = ctx.saved_tensors
        groups: _Groups = ctx.groups
        grad_GMO = grad_BTO.reshape(*hidden_GMR.shape[:2], -1)
        hidden_grad_GMR = torch.bmm(grad_GMO, groups.up_GOR)
        torch.bmm(grad_GMO.mT, hidden_GMR, out=groups.up_grad_GOR)
        torch.bmm(hidden_grad_GMR.mT, x_GMI, out=groups.down_grad_GRI)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        x_grad_GMI = torch.matmul(grad_GMO, ctx.base.weight).baddbmm_(hidden_grad_GMR, groups.down_GRI)
        return x_grad_GMI.view(ctx.shape), None, None, None


class GroupedFactors:
    """The copies of all layers of an adapter, and how they follow the factors that learn."""

    def __init__(
        self, layers: Sequence[tuple[GroupedLayer, Mapping[str, nn.Parameter], Mapping[str, nn.Parameter]]]
    ) -> None:
        """Take every layer's copies with the factors they are of: downs and ups by side."""
        self._factors: dict[str, list[nn.Parameter]] = {}
        self._copies: dict[str, list[Tensor]] = {}
        self._grads: dict[str, list[Tensor]] = {}
        for layer, downs, ups in layers:
            for index, side in enumerate(downs):
                self._factors.setdefault(side, []).extend((downs[side], ups[side]))
                self._copies.setdefault(side, []).extend((layer.down_JSRI[:, index], layer.up_JSOR[:, index]))
                self._grads.setdefault(side, []).extend((layer.down_grad_JSRI[:, index], layer.up_grad_JSOR[:, index]))

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the copies up to date with the factors."""
        for side, copies in self._copies.items():
            torch._foreach_copy_(copies, list[Tensor](self._factors[side]))

    @torch.no_grad()
    def hand_over(self, sides: Sequence[str]) -> None:
        """Give the factors of some sides the gradients of the last pass, in float32; others have none."""
        for side, factors in self._factors.items():
            if side not in sides:
                for parameter in factors:
                    parameter.grad = None
                continue
            grads: list[Tensor] = []
            for parameter in factors:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                grads.append(parameter.grad)
            torch._foreach_copy_(grads, self._grads[side])
