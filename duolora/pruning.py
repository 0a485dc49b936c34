"""Pruning: bring a LoRA to a rank or a file size by dropping the ranks that change the least.

Ranks of all layers compete in one list. The singular values of a layer say how much of its change is lost with a rank
(Eckart-Young), and the squared loss of the whole LoRA is the sum over its layers.
I inputs and O outputs of a layer, R its rank.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from duolora.errors import InvalidConfig
from duolora.lora.canonical import canonicalise
from duolora.lora.parts import PARTS_KEY, join_sides, rejoin, sides_of
from duolora.lora.weights import LoraLayer, LoraWeights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BYTES_PER_NUMBER = 2
"""Files are written in float16."""

KEYS_PER_LAYER = 3
"""Tensors of a layer in the longer of both formats, kohya's: down, up and alpha."""

HEADER_PER_TENSOR = 110
"""Bytes of a tensor's entry in the header beside its name: dtype, shape, offsets, suffix, braces."""

HEADER_RESERVE = 4096
"""Bytes for the header entries that writing adds."""


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """A pruned LoRA and what it cost.

    Attributes:
        weights: the LoRA that is left.
        relative_error: norm of the lost change over the norm of the whole change (Frobenius, over all layers).
        worst_layer: the layer that lost the largest share of its own change.
        worst_error: that share.
        ranks_before: sum of all ranks before.
        ranks_after: sum of all ranks left.
    """

    weights: LoraWeights
    relative_error: float
    worst_layer: str
    worst_error: float
    ranks_before: int
    ranks_after: int


class _Rank(NamedTuple):
    """One rank that competes for its place."""

    worth: float
    side: str
    layer: str
    position: int
    cost: int


def prune(
    lora: LoraWeights,
    *,
    target_rank: float | None = None,
    target_bytes: int | None = None,
    keep_parts: bool | None = None,
) -> Pruned:
    """Drop ranks until a LoRA has an average rank or fits into a file of a given size.

    Args:
        lora: any LoRA.
        target_rank: ranks per layer, on the average over the layers that the LoRA changes now.
        target_bytes: size that neither of the two files may exceed, in float16, headers included.
        keep_parts: prune each side of a merged LoRA in its own basis, so that its strengths can still be changed; else
            the sides are mixed, which loses less at the same rank. By default as the LoRA says its parts or not.

    Raises:
        InvalidConfig: not exactly one target, or one that leaves nothing.
        InvalidLora: the parts are to be kept, but the LoRA does not say them.
    """
    if (target_rank is None) == (target_bytes is None):
        raise InvalidConfig("give either a target rank or a target size")
    keeps = PARTS_KEY in lora.metadata if keep_parts is None else keep_parts
    sides = sides_of(lora) if keeps else {"": lora}
    canonical = {side: None if part is None else canonicalise(part) for side, part in sides.items()}
    ranks = sorted(_ranks(canonical, by_size=target_bytes is not None), reverse=True)
    if target_rank is not None:
        if not (math.isfinite(target_rank) and target_rank > 0):
            raise InvalidConfig(f"the target rank must be a positive number, not {target_rank}")
        kept = ranks[: math.floor(target_rank * len(lora.layers))]
    else:
        kept = _fitting(ranks, target_bytes or 0, lora.metadata)
    if not kept:
        target = f"rank {target_rank}" if target_bytes is None else f"{target_bytes} bytes"
        raise InvalidConfig(f"nothing is left at a target of {target}")
    left = {side: None if part is None else _keep(part, side, kept) for side, part in canonical.items()}
    words = {key: value for key, value in lora.metadata.items() if key != PARTS_KEY}
    weights = rejoin(left, words) if keeps else LoraWeights(join_sides(left).layers, words)
    return _account(lora, weights)


def _ranks(sides: Mapping[str, LoraWeights | None], *, by_size: bool) -> Iterable[_Rank]:
    """List all ranks with what they are worth: their energy, by size their energy per byte."""
    for side, part in sides.items():
        for name, layer in part.layers.items() if part is not None else ():
            cost = BYTES_PER_NUMBER * layer.numbers // layer.rank
            energies = (layer.up_OR.double().square().sum(0) * layer.down_RI.double().square().sum(1)).tolist()
            for position, energy in enumerate(energies):
                if energy > 0:
                    yield _Rank(energy / cost if by_size else energy, side, name, position, cost)


def _fitting(ranks: Iterable[_Rank], target_bytes: int, metadata: Mapping[str, str]) -> list[_Rank]:
    """Take the most valuable ranks, in order, that fit into a file; a layer's names are paid with its first rank."""
    words = sum(len(json.dumps([key, value])) for key, value in metadata.items())
    left = target_bytes - HEADER_RESERVE - words
    named: set[str] = set()
    kept = []
    for rank in ranks:
        # Its names stand in the tensors' keys, in PEFT's list of targets, and in its patterns and the parts if odd.
        names = (
            0 if rank.layer in named else KEYS_PER_LAYER * (len(rank.layer) + HEADER_PER_TENSOR) + 4 * len(rank.layer)
        )
        if rank.cost + names <= left:
            left -= rank.cost + names
            named.add(rank.layer)
            kept.append(rank)
    return kept


def _keep(part: LoraWeights, side: str, kept: Iterable[_Rank]) -> LoraWeights | None:
    """Return a side with only the ranks that are kept, None when there are none."""
    indices: dict[str, list[int]] = {}
    for rank in kept:
        if rank.side == side:
            indices.setdefault(rank.layer, []).append(rank.position)
    layers = {}
    for name, chosen in indices.items():
        layer, rows = part.layers[name], torch.tensor(sorted(chosen))
        layers[name] = layer.with_factors(layer.down_RI[rows], layer.up_OR[:, rows])
    return LoraWeights(layers) if layers else None


def _account(before: LoraWeights, after: LoraWeights) -> Pruned:
    """Measure what was lost, exactly, layer by layer."""
    lost: dict[str, float] = {}
    whole: dict[str, float] = {}
    for name, layer in before.layers.items():
        whole[name] = _norm([layer])
        left = after.layers.get(name)
        lost[name] = whole[name] if left is None else _norm([layer, left.scaled(-1.0)])
    shares = {name: lost[name] / whole[name] if whole[name] else 0.0 for name in lost}
    worst = max(shares, key=lambda name: shares[name])
    total = math.hypot(*whole.values())
    return Pruned(
        after,
        math.hypot(*lost.values()) / total if total else 0.0,
        worst,
        shares[worst],
        sum(layer.rank for layer in before.layers.values()),
        sum(layer.rank for layer in after.layers.values()),
    )


def _norm(parts: Iterable[LoraLayer]) -> float:
    """Frobenius norm of the sum of changes of one layer, by the inner products of its factors; no (O, I) matrix."""
    folded = [part.folded() for part in parts]
    down_RI = torch.cat([part.down_RI.double() for part in folded])
    up_OR = torch.cat([part.up_OR.double() for part in folded], dim=1)
    return float(((up_OR.mT @ up_OR) * (down_RI @ down_RI.mT)).sum().clamp(min=0).sqrt())
