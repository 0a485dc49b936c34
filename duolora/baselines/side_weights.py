"""Weights of the two sides for a merge that has none of its own: the LoRAs that it is given are scaled first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from duolora.method.merge_case import CONTENT, STYLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duolora.lora.weights import LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase


@dataclass(frozen=True, slots=True)
class SideWeighted:
    """A merge with a weight for either LoRA. A class, for a closure could not be sent to another process."""

    merge: Callable[..., list[LoraWeights]]

    def __call__(
        self,
        base: DiffusionBase,
        cases: Sequence[MergeCase],
        *,
        content_weight: float = 1.0,
        style_weight: float = 1.0,
        **knobs: Any,  # noqa: ANN401 - whatever the merge takes
    ) -> list[LoraWeights]:
        """Merge every case with its LoRAs scaled. Takes and raises what the merge does beside that."""
        weights = {CONTENT: content_weight, STYLE: style_weight}
        scaled = [
            replace(case, loras={side: lora.scaled(weights[side]) for side, lora in case.loras.items()})
            for case in cases
        ]
        return self.merge(base, scaled, **knobs)
