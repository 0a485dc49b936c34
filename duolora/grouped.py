"""Training's short way through the rank-space adapter: the samples of each side meet that side's factors only.

Masks over joined ranks serve any mixture of roles, but compute every sample's product with every side's factors and
throw most of it away. In a training the samples of a side stand together and all sides have equally many: their
products are one batched one, without masks. The factors are read from copies in the base's own dtype, made once a step
for all layers, and their gradients are written to memory that stays in place, so that a whole step can be recorded.

Layers that read the same input, as query, key and value of an attention do, take it together: one product with their
downs joined, one for the downs' gradients, and one gradient of the input that every layer adds its own to.

J tenants, S sides, L layers side by side, G = J * s groups of samples (tenant after tenant, side after side), M rows of
a group (samples times tokens), B = G * n samples, T tokens, I inputs, O outputs, R rank, K = l * R joined ranks of the
layers taken together.
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
    """The factors of all sides of one layer in the base's dtype, and where their gradients go; shapes (J, S, ...).

    Downs lie beside those of other layers, the layer's own at `place`. `anchor` is any factor that learns: by it
    autograd knows that there is something to learn.
    """

    base: nn.Linear
    anchor: Tensor
    place: int
    downs_JSLRI: Tensor
    down_grads_JSLRI: Tensor
    up_JSOR: Tensor
    up_grad_JSOR: Tensor

    @classmethod
    def side_by_side(
        cls,
        layers: Sequence[tuple[nn.Linear, Mapping[str, nn.Parameter], Mapping[str, nn.Parameter]]],
        dtype: torch.dtype,
    ) -> list[GroupedLayer]:
        """Copy the factors of layers of one width I and one rank: base, downs (J, R, I) and ups (J, O, R) of each."""
        downs_JSLRI = torch.stack([_of_sides(downs) for _, downs, _ in layers], dim=2).to(dtype)
        grads_JSLRI = torch.zeros_like(downs_JSLRI)
        members = []
        for place, (base, downs, ups) in enumerate(layers):
            up_JSOR = _of_sides(ups).to(dtype)
            anchor = next(iter(downs.values()))
            members.append(cls(base, anchor, place, downs_JSLRI, grads_JSLRI, up_JSOR, torch.zeros_like(up_JSOR)))
        return members

    def copies(self, side: int) -> tuple[Tensor, Tensor]:
        """Return the down (J, R, I) and the up (J, O, R) of one side, as views."""
        return self.downs_JSLRI[:, side, self.place], self.up_JSOR[:, side]

    def grads(self, side: int) -> tuple[Tensor, Tensor]:
        """Return where the gradients of one side's down and up go, as views."""
        return self.down_grads_JSLRI[:, side, self.place], self.up_grad_JSOR[:, side]


def _of_sides(factors: Mapping[str, nn.Parameter]) -> Tensor:
    """Stack one layer's factors of all sides, (J, S, ...)."""
    return torch.stack([factor.detach() for factor in factors.values()], dim=1)


def are_side_by_side(layers: Sequence[GroupedLayer]) -> bool:
    """Say whether the downs of layers lie behind each other in memory, in this order."""
    first = layers[0]
    places = range(first.place, first.place + len(layers))
    return [layer.place for layer in layers] == list(places) and all(
        layer.downs_JSLRI is first.downs_JSLRI for layer in layers
    )


def through(layers: Sequence[GroupedLayer], x_BTI: Tensor, span: slice) -> tuple[Tensor, ...]:
    """Return of every frozen layer the output plus each group's change, (B, T, O); the layers must be side by side."""
    first = layers[0]
    places = slice(first.place, first.place + len(layers))
    groups = _Groups(
        first.downs_JSLRI[:, span, places].flatten(2, 3).flatten(0, 1),
        first.down_grads_JSLRI[:, span, places].flatten(2, 3).flatten(0, 1),
        [layer.up_JSOR[:, span].flatten(0, 1) for layer in layers],
        [layer.up_grad_JSOR[:, span].flatten(0, 1) for layer in layers],
    )
    bases = [layer.base for layer in layers]
    outputs: tuple[Tensor, ...] = _Through.apply(x_BTI, first.anchor, bases, groups)  # type: ignore[no-untyped-call]
    return outputs


@dataclass(frozen=True, slots=True, eq=False)
class _Groups:
    """Views of some layers' factors and of where their gradients go, one row per group."""

    down_GKI: Tensor
    down_grad_GKI: Tensor
    ups_GOR: Sequence[Tensor]
    up_grads_GOR: Sequence[Tensor]

    def parts(self, joined_GMK: Tensor) -> Sequence[Tensor]:
        """Cut joined ranks into those of every layer, (G, M, R) each."""
        return joined_GMK.chunk(len(self.ups_GOR), dim=2)


class _Through(torch.autograd.Function):
    """Frozen linear layers and the low-rank changes of every group; gradients of the factors go to given memory.

    They replace what was there: one pass a step. Autograd hears of the input's gradient only.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's record
        x_BTI: Tensor,
        _anchor: Tensor,
        bases: Sequence[nn.Linear],
        groups: _Groups,
    ) -> tuple[Tensor, ...]:
        count, _, inputs = groups.down_GKI.shape
        x_GMI = x_BTI.reshape(count, -1, inputs)
        hidden_GMK = torch.bmm(x_GMI, groups.down_GKI.mT)
        outputs = tuple(functional.linear(x_BTI, base.weight, base.bias) for base in bases)
        for output_BTO, hidden_GMR, up_GOR in zip(outputs, groups.parts(hidden_GMK), groups.ups_GOR, strict=True):
            output_BTO.view(count, -1, output_BTO.shape[-1]).baddbmm_(hidden_GMR, up_GOR.mT)
        ctx.save_for_backward(x_GMI, hidden_GMK)
        ctx.bases, ctx.groups, ctx.shape = bases, groups, x_BTI.shape
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads_BTO: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x_GMI, hidden_GMK = ctx.saved_tensors
        groups: _Groups = ctx.groups
        grads_GMO = [grad_BTO.reshape(*hidden_GMK.shape[:2], -1) for grad_BTO in grads_BTO]
        hidden_grad_GMK = torch.empty_like(hidden_GMK)
        for layer, grad_GMO in enumerate(grads_GMO):
            torch.bmm(grad_GMO, groups.ups_GOR[layer], out=groups.parts(hidden_grad_GMK)[layer])
            torch.bmm(grad_GMO.mT, groups.parts(hidden_GMK)[layer], out=groups.up_grads_GOR[layer])
        torch.bmm(hidden_grad_GMK.mT, x_GMI, out=groups.down_grad_GKI)
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        x_grad_GMI = torch.matmul(grads_GMO[0], ctx.bases[0].weight)
        for grad_GMO, base in zip(grads_GMO[1:], ctx.bases[1:], strict=True):
            x_grad_GMI.view(-1, x_GMI.shape[2]).addmm_(grad_GMO.flatten(0, 1), base.weight)
        return x_grad_GMI.baddbmm_(hidden_grad_GMK, groups.down_GKI).view(ctx.shape), None, None, None


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
                self._copies.setdefault(side, []).extend(layer.copies(index))
                self._grads.setdefault(side, []).extend(layer.grads(index))

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
