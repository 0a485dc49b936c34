"""The keys of a LoRA's factors, in every format, and which belong together. Needs no torch.

Suffixes: `.lora_A.weight` and `.lora_B.weight` (PEFT), `.lora.down.weight` and `.lora.up.weight`,
`.lora_linear_layer.down.weight` or `_lora.down.weight` (older diffusers), `.lora_down.weight` and `.lora_up.weight`
(kohya, OneTrainer).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FACTOR = re.compile(
    r"^(?P<stem>.+?)(?:"
    r"\.lora_(?P<peft>[AB])(?:\.default(?:_\d+)?)?|"  # PEFT may leave the adapter's name in
    r"(?:\.|_)lora\.(?P<old>down|up)|"
    r"\.lora_linear_layer\.(?P<linear>down|up)|"
    r"\.lora_(?P<kohya>down|up)"
    r")\.weight$"
)


@dataclass(frozen=True, slots=True)
class Factor:
    """What a key says: the stem of its layer, and whether it holds the down or the up factor."""

    stem: str
    is_down: bool


@dataclass(frozen=True, slots=True)
class Pairs:
    """The keys of a file, sorted."""

    downs: Mapping[str, str]
    """Stem -> key of the down factor."""
    ups: Mapping[str, str]
    """Stem -> key of the up factor; the same stems."""
    others: tuple[str, ...]
    """Keys of what is no factor."""


def parse_factor(key: str) -> Factor | None:
    """Split the key of a factor, in any format; None for other keys."""
    match = _FACTOR.match(key)
    if match is None:
        return None
    stem, *kinds = match.group("stem", "peft", "old", "linear", "kohya")
    return Factor(stem, is_down=next(kind for kind in kinds if kind) in ("A", "down"))


def pair_up(keys: Iterable[str]) -> Pairs:
    """Sort the keys of a file.

    Raises:
        InvalidLora: a factor comes twice, or lacks the other one of its layer.
    """
    downs: dict[str, str] = {}
    ups: dict[str, str] = {}
    others: list[str] = []
    for key in keys:
        factor = parse_factor(key)
        if factor is None:
            others.append(key)
            continue
        found = downs if factor.is_down else ups
        if factor.stem in found:
            raise InvalidLora(f"{key} and {found[factor.stem]} are the same factor of one layer")
        found[factor.stem] = key
    for stem in sorted(downs.keys() ^ ups.keys()):
        factor_name = "up" if stem in downs else "down"
        raise InvalidLora(f"{downs.get(stem) or ups[stem]} has no matching {factor_name} factor; the file is cut")
    return Pairs(downs, ups, tuple(others))
