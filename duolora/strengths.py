"""Strength after the merge: a merged LoRA's sides are re-weighted exactly, without another merge."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from duolora.errors import InvalidConfig
from duolora.lora.parts import Parts, join_sides, rejoin, sides_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duolora.lora.weights import LoraWeights


def reweight(lora: LoraWeights, strengths: Mapping[str, float]) -> LoraWeights:
    """Multiply each side of a merged LoRA by a strength.

    Args:
        lora: a merged LoRA that says its parts, as every file that DuoLoRA merges does.
        strengths: side -> strength, relative to what the file has now; sides left out keep theirs. A side of strength 0
            leaves the file.

    Returns:
        A LoRA that still says its parts.

    Raises:
        InvalidLora: the LoRA does not say its parts, or has no such side, or nothing would be left.
        InvalidConfig: a strength is not finite.
    """
    Parts.of(lora).known(list(strengths))
    for side, strength in strengths.items():
        if not math.isfinite(strength):
            raise InvalidConfig(f"the strength of {side} must be a finite number, not {strength}")
    scaled = {
        side: None if part is None or strengths.get(side, 1.0) == 0 else part.scaled(strengths.get(side, 1.0))
        for side, part in sides_of(lora).items()
    }
    return rejoin(scaled, lora.metadata)


def faded(lora: LoraWeights, strengths: Mapping[str, float]) -> LoraWeights:
    """Multiply each side of a merged LoRA by a strength for one sampling: unlike `reweight`, 0 keeps the ranks.

    Raises:
        InvalidLora: the LoRA does not say its parts.
    """
    return rejoin(
        {
            side: None if part is None else part.scaled(strengths.get(side, 1.0))
            for side, part in sides_of(lora).items()
        },
        lora.metadata,
    )


def added(loras: Sequence[tuple[LoraWeights, float]]) -> LoraWeights | None:
    """Add LoRAs, each times its strength, as one, exactly; None if there is none, or none with a strength.

    Raises:
        InvalidLora: two change one layer in different shapes.
    """
    scaled = {str(place): lora.scaled(strength) for place, (lora, strength) in enumerate(loras) if strength != 0}
    return join_sides(scaled) if scaled else None
