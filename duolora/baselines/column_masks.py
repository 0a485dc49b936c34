"""Masks over the outputs of LoRA changes, as ZipLoRA learns them: every side's change is scaled output by output.

    y = W x + sum_side m_side * (up_side (down_side x))

J tenants, T tokens, I inputs, O outputs, R rank of one side, B = J * n samples of a pass, tenant after tenant.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class ColumnMaskedLinear(nn.Module):
    """A frozen linear layer and the changes of all sides, each behind a learnable mask over the outputs."""

    def __init__(
        self, base: nn.Linear, parts: Mapping[str, tuple[Tensor, Tensor]], starts: Mapping[str, float]
    ) -> None:
        """`parts`: side -> factors of all tenants, down (J, R, I) and up (J, O, R); `starts`: side -> first mask."""
        super().__init__()
        self.base = base
        self.down_JRI = nn.Buffer(torch.cat([down for down, _ in parts.values()], dim=1), persistent=False)
        self.ups = {side: up_JOR.detach() for side, (_, up_JOR) in parts.items()}
        self.masks = nn.ParameterDict(
            {
                side: nn.Parameter(torch.full(up.shape[:2], starts[side], device=up.device))
                for side, (_, up) in parts.items()
            }
        )

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Return the base's output plus the masked changes, (B, T, O)."""
        output: Tensor = self.base(x_BTI)
        # The mask scales the ups, which are smaller than the outputs they give, and in float32: bfloat16 has no number
        # between 1 and 1.008, so that a mask rounded to it would stand still for many steps.
        up_JOR = torch.cat([self.masks[side][..., None] * up_JOR for side, up_JOR in self.ups.items()], dim=2)
        rows_JXI = x_BTI.reshape(self.down_JRI.shape[0], -1, x_BTI.shape[-1])
        change_JXO = rows_JXI @ self.down_JRI.mT.to(x_BTI.dtype) @ up_JOR.mT.to(x_BTI.dtype)
        return output + change_JXO.view_as(output)


@contextmanager
def swapped(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put modules in the place of a model's own, by path, while the context is open."""
    originals = {path: model.get_submodule(path) for path in layers}
    try:
        for path, module in layers.items():
            model.set_submodule(path, module)
        yield
    finally:
        for path, module in originals.items():
            model.set_submodule(path, module)
