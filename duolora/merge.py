"""DuoLoRA's merge: learn, per layer, which ranks of a content LoRA and of a style LoRA to keep (paper, section 4).

    L = L_distill + prior_weight * L_prior + constyle_weight * L_constyle

Both LoRAs stay frozen; only the masks learn. The result is one ordinary LoRA of rank r_c + r_s at most, exactly equal
to the masked model.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from duolora.adapters import RankSpaceAdapter
from duolora.config import LayerPrior
from duolora.errors import InvalidLora, TrainingDiverged
from duolora.events import Observer, Progress, Silent, advance
from duolora.images import load_pictures
from duolora.lora.canonical import canonicalise
from duolora.lora.carry import merge_carried, split_sides, unite
from duolora.merge_case import EncodedSide, MergeCase
from duolora.merge_objective import SIDES, Cycles, MergeObjective, teacher_bank
from duolora.priors import initial_mask, roles_by_resolution
from duolora.runtime import memory_errors
from duolora.ziprank import merge_by_masks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from duolora.config import MergeConfig
    from duolora.lora.weights import LoraWeights
    from duolora.models.sdxl import SdxlBase
    from duolora.priors import Role


@dataclass(frozen=True, slots=True)
class MergeSide:
    """One side of a merge: its LoRA, the pictures it was trained on and their captions."""

    weights: LoraWeights
    pictures: Sequence[Path]
    captions: Sequence[str]


@dataclass(frozen=True, slots=True, eq=False)
class MergeResult:
    """The merged LoRA and what the merge did, as JSON-ready values."""

    weights: LoraWeights
    report: Mapping[str, Any]


def merge_loras(
    base: SdxlBase,
    sides: Mapping[str, MergeSide],
    joint_prompt: str,
    config: MergeConfig,
    *,
    resolution_px: int,
    observer: Observer | None = None,
) -> MergeResult:
    """Merge a content LoRA and a style LoRA.

    Args:
        base: the model both were trained on.
        sides: "content" and "style".
        joint_prompt: caption of the subject in the style; the add-leg of both cycles uses it.
        config: steps, weights and priors.
        resolution_px: resolution of the pictures, which decides the roles of the layers.
        observer: receives progress.

    Raises:
        InvalidLora: a LoRA does not fit the base.
        LayerGroupEmpty: a prior was asked for that this model has no layers for.
        TrainingDiverged, Cancelled, OutOfMemory: as in training.
    """
    by_masks, carried = split_sides({side: sides[side].weights for side in SIDES})
    cases = [
        MergeCase(
            by_masks,
            {side: _encode(base, sides[side], resolution_px) for side in SIDES},
            base.encode_prompts([joint_prompt]),
            config.seed,
        )
    ]
    result = merge_cases(base, cases, config, resolution_px=resolution_px, observer=observer)[0]
    return MergeResult(unite(result.weights, merge_carried(carried)), result.report)


def merge_cases(
    base: SdxlBase,
    cases: Sequence[MergeCase],
    config: MergeConfig,
    *,
    resolution_px: int,
    observer: Observer | None = None,
) -> list[MergeResult]:
    """Merge several pairs of LoRAs in the same passes of the U-Net; each gets what it would get alone.

    Each case's own seed is used, not the configuration's. Raises what `merge_loras` raises, and InvalidLora for cases
    whose LoRAs differ in layers or ranks.
    """
    observer = observer or Silent()
    started = time.monotonic()
    observer.on_progress(Progress(step=0, total=config.steps, note="preparing teachers"))
    canonical = [{side: canonicalise(case.loras[side]) for side in SIDES} for case in cases]
    _require_alike(canonical)
    roles = _layer_roles(base, canonical[0], config, resolution_px)
    generators = [base.runtime.generator(case.seed) for case in cases]
    with memory_errors(), RankSpaceAdapter(*canonical).inject(base.unet) as adapter:
        bank = teacher_bank(base, adapter, cases, config.bank_size, generators)
        start = _starting_masks(canonical[0], roles, config)
        masks = adapter.learn_masks(
            {side: {name: mask_R.expand(len(cases), -1) for name, mask_R in of.items()} for side, of in start.items()}
        )
        cycles = Cycles(base, adapter, cases)
        objective = MergeObjective(base, adapter, config, bank=bank, cycles=cycles, roles=roles)
        losses = _optimise(objective, masks, config, generators, observer)
        learned = _of_each_tenant(adapter.learned_masks(), len(cases))
    seconds = (time.monotonic() - started) / len(cases)
    return [
        MergeResult(
            merge_by_masks(canonical[tenant], learned[tenant], config.prune_below),
            _report(
                canonical[tenant],
                learned[tenant],
                roles,
                [{name: values[tenant] for name, values in terms.items()} for terms in losses],
                config,
            )
            | {"seconds": seconds},
        )
        for tenant in range(len(cases))
    ]


def _optimise(
    objective: MergeObjective,
    masks: Sequence[Tensor],
    config: MergeConfig,
    generators: Sequence[torch.Generator],
    observer: Observer,
) -> list[dict[str, list[float]]]:
    """Take all steps; return the terms of every step, a number per tenant each."""
    optimizer = torch.optim.Adam(masks, lr=config.learning_rate)
    losses: list[dict[str, list[float]]] = []
    for step in range(config.steps):
        terms = objective.evaluate(step, generators)
        optimizer.zero_grad(set_to_none=True)
        terms["total"].sum().backward()
        optimizer.step()
        losses.append({name: values_J.tolist() for name, values_J in terms.items()})
        total = sum(losses[-1]["total"]) / len(generators)
        if not math.isfinite(total):
            raise TrainingDiverged(f"the merge's loss is {total} at step {step + 1}")
        advance(observer, Progress(step=step + 1, total=config.steps, loss=total, note="merging"))
    return losses


def _require_alike(canonical: Sequence[Mapping[str, LoraWeights]]) -> None:
    """Refuse cases that cannot share masks of one shape."""

    def shape(sides: Mapping[str, LoraWeights]) -> dict[str, dict[str, int]]:
        return {side: {name: layer.rank for name, layer in sides[side].layers.items()} for side in SIDES}

    if any(shape(sides) != shape(canonical[0]) for sides in canonical):
        raise InvalidLora("LoRAs merged together must change the same layers with the same ranks")


def _of_each_tenant(masks: Mapping[str, Mapping[str, Tensor]], tenants: int) -> list[dict[str, dict[str, Tensor]]]:
    """Split masks (J, R) into those of every tenant, (R,), on the CPU."""
    return [
        {
            side: {name: mask_JR[tenant].detach().cpu() for name, mask_JR in of_side.items()}
            for side, of_side in masks.items()
        }
        for tenant in range(tenants)
    ]


def _layer_roles(
    base: SdxlBase, canonical: Mapping[str, LoraWeights], config: MergeConfig, resolution_px: int
) -> dict[str, Role]:
    """Role of every layer that either LoRA changes; empty when no prior is asked for."""
    if config.prior is LayerPrior.NONE:
        return {}
    names = sorted({name for weights in canonical.values() for name in weights.layers})
    return roles_by_resolution(base.layer_resolutions(names, resolution_px))


def _encode(base: SdxlBase, side: MergeSide, resolution_px: int) -> EncodedSide:
    """Encode one side's pictures and captions once."""
    moments = base.encode_pictures(load_pictures(side.pictures, resolution_px))
    return EncodedSide(moments, base.encode_prompts(side.captions))


def _starting_masks(
    canonical: Mapping[str, LoraWeights], roles: Mapping[str, Role], config: MergeConfig
) -> dict[str, dict[str, Tensor]]:
    """Prior initialisation: all ones on a layer's dominant side, only the leading share on the other."""
    return {
        side: {
            name: initial_mask(
                layer.rank, dominant=name not in roles or roles[name] == side, minor_share=config.prior_start
            )
            for name, layer in weights.layers.items()
        }
        for side, weights in canonical.items()
    }


def _report(
    canonical: Mapping[str, LoraWeights],
    learned: Mapping[str, Mapping[str, Tensor]],
    roles: Mapping[str, Role],
    losses: Sequence[Mapping[str, float]],
    config: MergeConfig,
) -> dict[str, Any]:
    """Describe the merge: ranks kept per layer from each side, mean masks, losses, size."""
    layers: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        for name, mask_R in learned[side].items():
            entry = layers.setdefault(name, {"role": roles[name].value if name in roles else None})
            entry[side] = {
                "rank": canonical[side].layers[name].rank,
                "kept": int((mask_R.abs() > config.prune_below).sum()),
                "mean_mask": round(float(mask_R.mean()), 4),
            }
    return {
        "method": "duolora",
        "trainable": sum(mask_R.numel() for of_side in learned.values() for mask_R in of_side.values()),
        "losses": [{key: round(value, 6) for key, value in terms.items()} for terms in losses],
        "layers": layers,
    }
