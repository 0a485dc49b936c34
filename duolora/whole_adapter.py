"""LoRAs attached to all parts of a base that they change: a rank-space adapter for each part, one choice of roles.

The text encoders see the prompts of the very samples that the U-Net sees afterwards, in the same order, so a sample's
role is the same in all of them.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import torch

from duolora.adapters import RankSpaceAdapter
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from torch import Tensor, nn

    from duolora.grouped import GroupedFactors
    from duolora.models.base import DiffusionBase


class WholeAdapter:
    """Several LoRAs ("sides") of one tenant or of several on a whole base.

    Use as a context manager: entering attaches, leaving restores the base exactly. Roles are those of
    `RankSpaceAdapter`. A side may leave parts alone that another one changes; tenants must change the same parts.
    """

    def __init__(self, base: DiffusionBase, tenants: Sequence[Mapping[str, LoraWeights]]) -> None:
        self._base = base
        parts = sorted({_part(name) for lora in tenants[0].values() for name in lora.layers})
        self._sides = {part: [side for side, lora in tenants[0].items() if _only(lora, part)] for part in parts}
        self._adapters = {
            part: RankSpaceAdapter(*(_with_all_sides(tenant, part) for tenant in tenants), component=part)
            for part in parts
        }
        self._inside = ExitStack()

    def __enter__(self) -> Self:
        """Attach.

        Raises:
            InvalidLora: a LoRA does not fit the base.
        """
        with ExitStack() as stack:
            for part, adapter in self._adapters.items():
                stack.enter_context(adapter.inject(self._base.part(part)))
            self._inside = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the base."""
        self._inside.close()

    def assign(self, rows_B: Tensor) -> None:
        """Choose the role of every sample of the next passes; rows_B (B,) int64."""
        for adapter in self._adapters.values():
            adapter.assign(rows_B)

    def train_factors(self, side: str) -> list[nn.Parameter]:
        """Let the factors of one side learn and return them."""
        return [
            parameter
            for part, adapter in self._adapters.items()
            if side in self._sides[part]
            for parameter in adapter.train_factors(side)
        ]

    def group_factors(self, dtype: torch.dtype) -> GroupedFactors | None:
        """Let training passes take the short way, as `RankSpaceAdapter.group_factors`; where the U-Net alone learns.

        Text encoders see prompts once per caption, not in the order of the samples' groups.
        """
        return self._adapters["unet"].group_factors(dtype) if set(self._adapters) == {"unet"} else None

    def takes_groups(self) -> bool:
        """Say whether a pass of the roles assigned last takes the short way."""
        return all(adapter.takes_groups() for adapter in self._adapters.values())

    def factors(self, side: str) -> dict[str, nn.Parameter]:
        """Return the factors of one side by layer and kind, (J, R, I) and (J, O, R)."""
        return {
            name: parameter
            for part, adapter in self._adapters.items()
            if side in self._sides[part]
            for name, parameter in adapter.factors(side).items()
        }

    def present_rows(self) -> Tensor:
        """Return the roles assigned last, (B,) int64."""
        return next(iter(self._adapters.values())).present_rows()

    def switch_all_on(self) -> int:
        """Let one more role have every rank of every side in full, and return it."""
        return max(adapter.switch_all_on() for adapter in self._adapters.values())

    def export(self, side: str, tenant: int = 0) -> LoraWeights:
        """Return the present factors of one side of one tenant as a LoRA, on the CPU."""
        layers: dict[str, LoraLayer] = {}
        for part, adapter in self._adapters.items():
            if side in self._sides[part]:
                layers |= adapter.export(side, tenant).layers
        return LoraWeights(layers)


def _part(layer_name: str) -> str:
    """Return the part of the base that a layer belongs to."""
    return layer_name.partition(".")[0]


def _only(lora: LoraWeights, part: str) -> LoraWeights | None:
    """Return what a LoRA changes in one part."""
    return lora.only({name for name in lora.layers if _part(name) == part})


def _with_all_sides(tenant: Mapping[str, LoraWeights], part: str) -> dict[str, LoraWeights]:
    """Return what every side changes in one part; a side that changes nothing there has one rank of zeros in a layer.

    An adapter numbers its roles by its sides, so that none may be missing from it.
    """
    changed = {side: _only(lora, part) for side, lora in tenant.items()}
    name, layer = next((name, layer) for lora in changed.values() if lora for name, layer in lora.layers.items())
    nothing = layer.with_factors(torch.zeros_like(layer.down_RI[:1]), torch.zeros_like(layer.up_OR[:, :1]))
    return {side: LoraWeights({name: nothing}) if lora is None else lora for side, lora in changed.items()}
