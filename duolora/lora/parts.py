"""The parts of a merged LoRA: its ranks stand side after side, and the file says how many ranks each side has.

So a user can re-weight, take out or prune a side later, without another merge.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

import torch

from duolora.errors import InvalidLora
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PARTS_KEY = "duolora.parts"
"""Header entry, JSON: `{"sides": [...], "ranks": [...], "layers": {layer: [...]}}`. `ranks` counts the ranks of each
side in most layers, `layers` those of the layers where it is otherwise."""

MAX_SIDES = 64
"""No merge has more; a file that says so is refused before anything is built."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Sides in order, and per layer how many ranks of it belong to each."""

    sides: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, lora: LoraWeights) -> Parts:
        """Read the parts of a merged LoRA.

        Raises:
            InvalidLora: it has none, or they do not fit its ranks.
        """
        words = lora.metadata.get(PARTS_KEY)
        if words is None:
            raise InvalidLora(
                f"this LoRA does not say which ranks belong to which side ({PARTS_KEY} is missing from its header); "
                "only a file merged by DuoLoRA does: merge again to get one"
            )
        parts = cls._parse(words, lora)
        for name, layer in lora.layers.items():
            counts = parts.counts[name]
            if len(counts) != len(parts.sides) or min(counts) < 0 or sum(counts) != layer.rank:
                raise InvalidLora(
                    f"{name} has {layer.rank} ranks, but {PARTS_KEY} counts {list(counts)} for {list(parts.sides)}; "
                    "another program has changed the file: merge again"
                )
        return parts

    @classmethod
    def _parse(cls, words: str, lora: LoraWeights) -> Parts:
        """Build the parts from the header's JSON."""
        try:
            entry = json.loads(words)
            sides = tuple(str(side) for side in entry["sides"])
            usual = tuple(int(count) for count in entry["ranks"])
            others = {name: tuple(int(count) for count in counts) for name, counts in entry["layers"].items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidLora(f"the header entry {PARTS_KEY} is damaged: {error!r}; merge again") from error
        if not 0 < len(sides) <= MAX_SIDES or len(set(sides)) != len(sides):
            raise InvalidLora(f"the header entry {PARTS_KEY} names no distinct sides; merge again")
        return cls(sides, {name: others.get(name, usual) for name in lora.layers})

    def words(self) -> str:
        """Return the header's JSON."""
        usual = Counter(self.counts.values()).most_common(1)[0][0]
        others = {name: list(counts) for name, counts in sorted(self.counts.items()) if counts != usual}
        entry = {"sides": list(self.sides), "ranks": list(usual), "layers": others}
        return json.dumps(entry, separators=(",", ":"))

    def known(self, sides: Sequence[str]) -> None:
        """Refuse names that are no sides of this LoRA.

        Raises:
            InvalidLora: with the unknown name and the known ones.
        """
        for side in sides:
            if side not in self.sides:
                raise InvalidLora(f"this LoRA has no side {side!r}; it has {', '.join(self.sides)}")


def concatenate(parts: Sequence[LoraLayer]) -> LoraLayer:
    """Return the sum of several changes of one layer as one layer of the summed rank; exact, no SVD.

    Raises:
        InvalidLora: they change weights of different shapes.
    """
    folded = [part.folded() for part in parts]
    shapes = {part.weight_shape for part in folded}
    if len(shapes) > 1:
        raise InvalidLora(f"changes of weights of shapes {sorted(shapes)} cannot be added; use LoRAs of one base")
    dtype = reduce(torch.promote_types, [factor.dtype for part in folded for factor in (part.down_RI, part.up_OR)])
    return folded[0].with_factors(
        torch.cat([part.down_RI.to(dtype) for part in folded], dim=0),
        torch.cat([part.up_OR.to(dtype) for part in folded], dim=1),
    )


def join_sides(sides: Mapping[str, LoraWeights | None]) -> LoraWeights:
    """Add LoRAs as one, exactly, and note which ranks come from which side.

    Args:
        sides: side -> its LoRA, strengths and masks folded in; None for a side of which nothing is left.

    Returns:
        One LoRA; every layer has the ranks of its sides behind each other, in the order of `sides`.

    Raises:
        InvalidLora: nothing is left of any side, or two sides are not of one base.
    """
    names = sorted({name for lora in sides.values() if lora is not None for name in lora.layers})
    layers: dict[str, LoraLayer] = {}
    counts: dict[str, tuple[int, ...]] = {}
    for name in names:
        parts = {side: lora.layers[name] for side, lora in sides.items() if lora is not None and name in lora.layers}
        try:
            layers[name] = concatenate(list(parts.values()))
        except InvalidLora as error:
            raise InvalidLora(f"{name}: {error}") from error
        counts[name] = tuple(parts[side].rank if side in parts else 0 for side in sides)
    joined = LoraWeights(layers)
    return joined.with_metadata(**{PARTS_KEY: Parts(tuple(sides), counts).words()})


def sides_of(lora: LoraWeights) -> dict[str, LoraWeights | None]:
    """Take a merged LoRA apart again; the inverse of `join_sides`.

    Returns:
        Side -> its part, without metadata; None for a side without ranks.

    Raises:
        InvalidLora: the LoRA does not say its parts.
    """
    parts = Parts.of(lora)
    layers: dict[str, dict[str, LoraLayer]] = {side: {} for side in parts.sides}
    for name, layer in lora.folded().layers.items():
        counts = list(parts.counts[name])
        downs, ups = layer.down_RI.split(counts, dim=0), layer.up_OR.split(counts, dim=1)
        for side, down_RI, up_OR in zip(parts.sides, downs, ups, strict=True):
            if down_RI.shape[0]:
                layers[side][name] = layer.with_factors(down_RI, up_OR)
    return {side: LoraWeights(of_side) if of_side else None for side, of_side in layers.items()}


def rejoin(sides: Mapping[str, LoraWeights | None], metadata: Mapping[str, str]) -> LoraWeights:
    """Join sides and keep the words of the file that they were taken from; see `join_sides`."""
    joined = join_sides(sides)
    return LoraWeights(joined.layers, {**metadata, **joined.metadata})
