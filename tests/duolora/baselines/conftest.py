"""Cases for the rivals on the pico base: strong LoRAs of unequal rank, the style one missing the last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duolora.merge import encode_side
from duolora.method.merge_case import MergeCase
from tests.duolora.pico import RESOLUTION_PX, random_lora

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duolora.method.merge_case import EncodedSide
    from duolora.models.base import DiffusionBase


@pytest.fixture
def encoded(base: DiffusionBase, content_pictures: list[Path], style_pictures: list[Path]) -> dict[str, EncodedSide]:
    pictures = {"content": content_pictures, "style": style_pictures}
    captions = {"content": "a sbu disc", "style": "a disc in szn style"}
    return {
        side: encode_side(base, shown, [captions[side]] * len(shown), RESOLUTION_PX) for side, shown in pictures.items()
    }


@pytest.fixture
def make_case(base: DiffusionBase, encoded: dict[str, EncodedSide]) -> Callable[..., MergeCase]:
    def make(
        seed: int = 0, content_ranks: tuple[int, ...] = (4,), style_ranks: tuple[int, ...] = (3,), scale: float = 0.15
    ) -> MergeCase:
        paths = base.target_layers("attention")
        return MergeCase(
            {
                "content": random_lora(base, seed=2 * seed + 1, ranks=content_ranks, alpha=2.0, scale=scale),
                "style": random_lora(base, seed=2 * seed + 2, ranks=style_ranks, scale=scale, paths=paths[:-1]),
            },
            encoded,
            base.encode_prompts(["a sbu disc in szn style"]),
            seed,
        )

    return make


@pytest.fixture
def case(make_case: Callable[..., MergeCase]) -> MergeCase:
    return make_case()
