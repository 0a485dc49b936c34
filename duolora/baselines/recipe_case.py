"""What a rival that trains from pictures may look at: each side's pictures and captions, and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class RecipeCase:
    """One subject and one style as pictures; sides are "content" and "style", a caption for every picture."""

    pictures: Mapping[str, Sequence[Path]]
    captions: Mapping[str, Sequence[str]]
    seed: int
