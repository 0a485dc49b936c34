"""The merges that peft offers, run by peft itself (`LoraModel.add_weighted_adapter`).

svd, linear and cat add the two changes with weights; ties (Yadav et al. 2023, arXiv 2306.01708) trims small entries
and elects a sign, dare (Yu et al. 2023, arXiv 2311.03099) drops entries at random and rescales the rest,
magnitude_prune keeps the largest. Names ending in _svd work on the dense changes and cut the result to a rank by SVD;
the others work on the raw factors, for which both LoRAs must have one and the same rank.

peft works on modules, so the factors are hung on a holder of bare linear layers whose weights take no memory, merged,
and read back. It computes on the CPU: dare draws from the process's generator, and a seed must mean the same
everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from peft import LoraConfig, LoraModel
from torch import nn

from duolora.baselines.pairing import layer_names
from duolora.errors import InvalidConfig, InvalidLora
from duolora.lora.weights import LoraWeights
from duolora.method.merge_case import SIDES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from duolora.lora.weights import LoraLayer
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase

PeftCombination = Literal[
    "svd",
    "ties_svd",
    "dare_ties_svd",
    "dare_linear_svd",
    "magnitude_prune_svd",
    "cat",
    "linear",
    "ties",
    "dare_ties",
    "dare_linear",
    "magnitude_prune",
]
ANY_RANKS = frozenset({"svd", "ties_svd", "dare_ties_svd", "dare_linear_svd", "magnitude_prune_svd", "cat"})
"""Combinations that take LoRAs of any ranks."""
WHOLE = frozenset({"svd", "cat", "linear"})
"""Combinations that prune nothing and so have no density."""
_MERGED = "merged"


def merge(
    base: DiffusionBase,  # noqa: ARG001 - every rival is called alike
    cases: Sequence[MergeCase],
    *,
    combination: PeftCombination = "svd",
    content_weight: float = 1.0,
    style_weight: float = 1.0,
    density: float = 0.5,
    rank: int | None = None,
) -> list[LoraWeights]:
    """Merge every case by one of peft's combinations.

    Args:
        base: not needed.
        cases: the pairs to merge.
        combination: peft's `combination_type`.
        content_weight: weight of the content LoRA.
        style_weight: weight of the style LoRA.
        density: share of entries that pruning combinations keep, above 0 and at most 1.
        rank: rank that combinations ending in _svd cut to; None for the larger one of the two LoRAs.

    Raises:
        InvalidConfig: the density is out of bounds.
        InvalidLora: the combination works on raw factors and the ranks differ.
    """
    if not 0 < density <= 1:
        raise InvalidConfig(f"a density lies above 0 and at most at 1; got {density}")
    return [
        _merge_one(case, combination, [content_weight, style_weight], None if combination in WHOLE else density, rank)
        for case in cases
    ]


def _merge_one(
    case: MergeCase, combination: PeftCombination, weights: list[float], density: float | None, rank: int | None
) -> LoraWeights:
    """Merge one case in a holder of its own, leaving the process's random numbers as they were."""
    loras = {side: case.loras[side] for side in SIDES}
    ranks = {layer.rank for lora in loras.values() for layer in lora.layers.values()}
    if combination not in ANY_RANKS and len(ranks) > 1:
        raise InvalidLora(f"peft's {combination!r} needs LoRAs of one rank; these have ranks {sorted(ranks)}")
    names = layer_names(case)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = LoraModel(_holder(loras, names), _config(loras[SIDES[0]], names), SIDES[0])
        for side in SIDES[1:]:
            model.peft_config[side] = _config(loras[side], names)
            model.inject_adapter(model.model, side)
        for side, lora in loras.items():
            for name, layer in lora.layers.items():
                place = _place(model, names, name)
                place.lora_A[side].weight.copy_(layer.down_RI)
                place.lora_B[side].weight.copy_(layer.up_OR)
        torch.manual_seed(case.seed)
        model.add_weighted_adapter(
            list(SIDES),
            weights,
            _MERGED,
            combination_type=combination,
            svd_rank=rank,
            svd_full_matrices=False,
            density=density,
        )
        layers = {name: _read(_place(model, names, name), _first(loras, name)) for name in names}
    return LoraWeights({name: layer for name, layer in layers.items() if layer is not None})


def _holder(loras: Mapping[str, LoraWeights], names: Sequence[str]) -> nn.Module:
    """Build a linear layer for each name, all weights one stretched zero."""
    holder = nn.Module()
    for index, name in enumerate(names):
        part = _first(loras, name)
        linear = nn.Linear(part.down_RI.shape[1], part.up_OR.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(torch.zeros(1, 1).expand(linear.weight.shape), requires_grad=False)
        holder.add_module(f"layer_{index}", linear)
    return holder


def _first(loras: Mapping[str, LoraWeights], name: str) -> LoraLayer:
    """Return a layer from the first side that has it."""
    return next(lora.layers[name] for lora in loras.values() if name in lora.layers)


def _config(lora: LoraWeights, names: Sequence[str]) -> LoraConfig:
    """Describe a LoRA to peft: the layers it changes, each with its rank and alpha."""
    numbered = {f"layer_{index}": lora.layers[name] for index, name in enumerate(names) if name in lora.layers}
    return LoraConfig(
        r=max(layer.rank for layer in numbered.values()),
        lora_alpha=1,
        target_modules=list(numbered),
        rank_pattern={module: layer.rank for module, layer in numbered.items()},
        alpha_pattern={module: layer.alpha for module, layer in numbered.items()},
    )


def _place(model: LoraModel, names: Sequence[str], name: str) -> Any:  # noqa: ANN401 - peft has no types
    """Return peft's module for a layer."""
    return model.model.get_submodule(f"layer_{names.index(name)}")


def _read(place: Any, like: LoraLayer) -> LoraLayer | None:  # noqa: ANN401 - peft has no types
    """Read peft's merged factors back, its scale folded in and empty ranks left out; None when nothing is left."""
    down_RI, up_OR = place.lora_A[_MERGED].weight, place.lora_B[_MERGED].weight
    kept_R = (down_RI != 0).any(dim=1) & (up_OR != 0).any(dim=0)
    if not bool(kept_R.any()):
        return None
    scaled_OR = up_OR * place.scaling[_MERGED]
    return like.with_factors(down_RI[kept_R], scaled_OR[:, kept_R]).to(torch.float32)
