"""DuoLoRA's merge: find, per layer, how much of each rank of a content LoRA and of a style LoRA to keep.

Masks begin somewhere (`duolora.method.merge_start`) and may then learn (paper, section 4):

    L = L_distill + prior_weight * L_prior + constyle_weight * L_constyle

The LoRAs stay frozen; only the masks learn. The result is one ordinary LoRA whose rank is the sum of theirs at most,
exactly equal to the masked model. Two LoRAs are the ordinary case; more, of either role, merge in the same way.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from duolora.adapters import RankSpaceAdapter
from duolora.config import LayerPrior, MaskStart, MergeMethod, TargetLayers
from duolora.errors import InvalidConfig, InvalidLora
from duolora.events import Observer, Silent
from duolora.images import load_pictures
from duolora.lora.canonical import canonicalise
from duolora.lora.carry import merge_carried, split_sides, unite
from duolora.merge_course import MergeCourse, optimise
from duolora.method.merge_case import EncodedSide, MergeCase
from duolora.method.merge_objective import Cycles, MergeObjective
from duolora.method.merge_start import MomentRecorder, starting_masks
from duolora.method.priors import roles_by_resolution
from duolora.method.teacher_bank import teacher_bank
from duolora.method.ziprank import merge_by_masks
from duolora.runtime import memory_errors
from duolora.strengths import reweight
from duolora.thrift import recomputed_activations

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from duolora.config import MergeConfig
    from duolora.keeping import Keeper
    from duolora.lora.weights import LoraWeights
    from duolora.method.merge_start import Masks
    from duolora.method.priors import Role
    from duolora.models.base import DiffusionBase


@dataclass(frozen=True, slots=True)
class MergeSide:
    """One side of a merge: its LoRA, the pictures it was trained on and their captions.

    `strength` multiplies the side in the result; pictures may be missing where nothing is learnt.
    """

    weights: LoraWeights
    pictures: Sequence[Path]
    captions: Sequence[str]
    strength: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class MergeResult:
    """The merged LoRA and what the merge did, as JSON-ready values."""

    weights: LoraWeights
    report: Mapping[str, Any]


def merge_loras(
    base: DiffusionBase,
    sides: Mapping[str, MergeSide],
    joint_prompt: str,
    config: MergeConfig,
    *,
    resolution_px: int,
    observer: Observer | None = None,
    keeper: Keeper | None = None,
) -> MergeResult:
    """Merge LoRAs of one base.

    Args:
        base: the model all were trained on.
        sides: "content" and "style", or more; a side's name begins with its role ("style-2").
        joint_prompt: caption of all together; the add-leg of the cycles uses it.
        config: start, steps, weights and priors.
        resolution_px: resolution of the pictures, which decides the roles of the layers.
        observer: receives progress.
        keeper: keeps checkpoints; a merge that goes on from one gives, on a CPU, the bits that it would have given
            without the interruption. A merge of no steps has none.

    Raises:
        InvalidLora: a LoRA does not fit the base.
        InvalidConfig: a side's name does not begin with a role, or pictures are missing that the merge learns from.
        LayerGroupEmpty: a prior was asked for that this model has no layers for.
        TrainingDiverged, Cancelled, CheckpointUnusable, OutOfMemory: as in training.
    """
    case = merge_case(base, sides, joint_prompt, config, resolution_px=resolution_px)
    result = merge_cases(base, [case], config, resolution_px=resolution_px, observer=observer, keeper=keeper)[0]
    return MergeResult(with_carried(result.weights, sides), result.report)


def merge_case(
    base: DiffusionBase, sides: Mapping[str, MergeSide], joint_prompt: str, config: MergeConfig, *, resolution_px: int
) -> MergeCase:
    """Return what a merge may look at; pictures are encoded only if it does. Raises what `merge_loras` raises."""
    by_masks, _ = split_sides({side: given.weights for side, given in sides.items()})
    encoded = _encode(base, sides, resolution_px) if config.needs_pictures else {}
    return MergeCase(by_masks, encoded, base.encode_prompts([joint_prompt]), config.seed)


def with_carried(merged: LoraWeights, sides: Mapping[str, MergeSide]) -> LoraWeights:
    """Give a merge its sides' strengths, and what the sides carry that masks do not decide."""
    strengths = {side: given.strength for side, given in sides.items()}
    if set(strengths.values()) != {1.0}:
        merged = reweight(merged, strengths)
    _, carried = split_sides({side: given.weights for side, given in sides.items()})
    return unite(merged, merge_carried(carried, strengths))


def merge_cases(
    base: DiffusionBase,
    cases: Sequence[MergeCase],
    config: MergeConfig,
    *,
    resolution_px: int,
    observer: Observer | None = None,
    keeper: Keeper | None = None,
) -> list[MergeResult]:
    """Merge the LoRAs of several cases in the same passes of the U-Net; each gets what it would get alone.

    Each case's own seed is used, not the configuration's. Raises what `merge_loras` raises, and InvalidLora for cases
    whose LoRAs differ in layers or ranks.
    """
    if config.method is not MergeMethod.RANK_MASKS:
        raise InvalidConfig(
            f"this merges by rank masks; for {config.method.value!r} use duolora.personalize.merge_sides"
        )
    course = MergeCourse(
        observer or Silent(),
        keeper if config.steps > 0 else None,
        config.steps,
        records=base.memory.records and not base.memory.recomputes_merge,
    )
    started = time.monotonic()
    course.tell("preparing the merge")
    with memory_errors():
        device = base.runtime.device
        canonical = [{side: canonicalise(lora, device) for side, lora in case.loras.items()} for case in cases]
    _require_alike(canonical)
    side_roles = {side: cases[0].role(side) for side in cases[0].sides}
    layer_roles = _layer_roles(base, canonical[0], config, resolution_px)
    masks = starting_masks(canonical, config, layer_roles=layer_roles, side_roles=side_roles)
    losses: list[dict[str, list[float]]] = []
    if config.needs_pictures:
        with memory_errors(), RankSpaceAdapter(*canonical).inject(base.unet) as adapter:
            masks, losses = _learn(
                base,
                adapter,
                cases,
                config,
                start=masks,
                layer_roles=layer_roles,
                side_roles=side_roles,
                course=course,
                thrifty=base.memory.recomputes_merge,
            )
    learned = _of_each_tenant(masks, len(cases))
    seconds = (time.monotonic() - started) / len(cases)
    terms = [
        [{name: values[tenant] for name, values in of_step.items()} for of_step in losses]
        for tenant in range(len(cases))
    ]
    return [
        _result(loras, masks_of, terms_of, config, layer_roles=layer_roles, seconds=seconds)
        for loras, masks_of, terms_of in zip(canonical, learned, terms, strict=True)
    ]


def _result(
    canonical: Mapping[str, LoraWeights],
    masks: Mapping[str, Mapping[str, Tensor]],
    losses: Sequence[Mapping[str, float]],
    config: MergeConfig,
    *,
    layer_roles: Mapping[str, Role],
    seconds: float,
) -> MergeResult:
    """Put one case's masks to its LoRAs, and tell what that did."""
    report = merge_report(
        masks,
        layer_roles,
        losses,
        method="duolora",
        start=config.start,
        trainable=sum(mask_R.numel() for of_side in masks.values() for mask_R in of_side.values()),
        prune_below=config.prune_below,
    )
    return MergeResult(merge_by_masks(canonical, masks, config.prune_below), report | {"seconds": seconds})


def _learn(
    base: DiffusionBase,
    adapter: RankSpaceAdapter,
    cases: Sequence[MergeCase],
    config: MergeConfig,
    *,
    start: Masks,
    layer_roles: Mapping[str, Role],
    side_roles: Mapping[str, Role],
    course: MergeCourse,
    thrifty: bool,
) -> tuple[Masks, list[dict[str, list[float]]]]:
    """Let the masks of an attached adapter learn; return them with the terms of every step, a number per tenant each.

    A closed form is solved first, from what the teachers' passes bring, unless a checkpoint has learned from it.
    """
    generators = [base.runtime.generator(case.seed) for case in cases]
    solves = config.start is MaskStart.CLOSED_FORM and course.saved is None
    solved = MomentRecorder(adapter) if solves else None
    with nullcontext() if solved is None else solved:
        bank = teacher_bank(
            base,
            adapter,
            cases,
            config.bank_size,
            generators,
            tell=course.pause,
            chunk=base.memory.predicts_at_once,
        )
    objective = MergeObjective(
        base,
        adapter,
        config,
        bank=bank,
        cycles=Cycles(base, adapter, cases),
        layer_roles={} if config.prior is LayerPrior.NONE else layer_roles,
        side_roles=side_roles,
        apart=thrifty,
    )
    leaves = adapter.learn_masks(start if solved is None else solved.solve(config.ridge))
    named = dict(zip(adapter.layers, leaves, strict=True))
    with recomputed_activations(base, adapter) if thrifty else nullcontext():
        losses = optimise(objective, named, config, generators, course)
    return adapter.learned_masks(), losses


def _require_alike(canonical: Sequence[Mapping[str, LoraWeights]]) -> None:
    """Refuse cases that cannot share masks of one shape."""

    def shape(sides: Mapping[str, LoraWeights]) -> dict[str, dict[str, int]]:
        return {side: {name: layer.rank for name, layer in lora.layers.items()} for side, lora in sides.items()}

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
    base: DiffusionBase, canonical: Mapping[str, LoraWeights], config: MergeConfig, resolution_px: int
) -> dict[str, Role]:
    """Role of every layer that a LoRA changes; empty when neither start nor prior asks for it."""
    names = sorted({name for weights in canonical.values() for name in weights.layers})
    if config.prior is LayerPrior.RESOLUTION:
        return roles_by_resolution(base.layer_resolutions(names, resolution_px))
    return whole_model_roles(base, names, resolution_px) if config.start is MaskStart.MEASURED else {}


def whole_model_roles(base: DiffusionBase, names: Iterable[str], resolution_px: int) -> dict[str, Role]:
    """Return what the resolution of layers makes of them, beside all that the model has.

    LoRAs that change one block only have a place in the model all the same.

    Raises:
        LayerGroupEmpty: the model has one resolution only, or a layer is in no transformer block.
    """
    names = list(names)
    everywhere = {*names, *(f"unet.{path}" for path in base.target_layers(TargetLayers.TRANSFORMER))}
    roles = roles_by_resolution(base.layer_resolutions(sorted(everywhere), resolution_px))
    return {name: roles[name] for name in names}


def _encode(base: DiffusionBase, sides: Mapping[str, MergeSide], resolution_px: int) -> dict[str, EncodedSide]:
    """Encode every side's pictures and captions once."""
    missing = [side for side, given in sides.items() if not given.pictures]
    if missing:
        raise InvalidConfig(
            f"this merge learns from pictures, and {', '.join(missing)} has none; give some, or merge "
            "with a recipe that needs none"
        )
    return {side: encode_side(base, given.pictures, given.captions, resolution_px) for side, given in sides.items()}


def encode_side(
    base: DiffusionBase, pictures: Sequence[Path], captions: Sequence[str], resolution_px: int
) -> EncodedSide:
    """Encode one side's pictures and captions. Raises what `load_pictures` and the base raise."""
    return EncodedSide(base.encode_pictures(load_pictures(pictures, resolution_px)), base.encode_prompts(captions))


def merge_report(
    masks: Mapping[str, Mapping[str, Tensor]],
    roles: Mapping[str, Role],
    losses: Sequence[Mapping[str, float]],
    *,
    method: str,
    start: MaskStart,
    trainable: int,
    prune_below: float = 0.0,
) -> dict[str, Any]:
    """Describe a merge: ranks kept per layer from each side, mean masks, losses, how many numbers learnt.

    Args:
        masks: side -> layer name -> mask (R,).
        roles: layer name -> the role that dominates it; other layers are said to have none.
        losses: the terms of every step by name.
        method: who found the masks.
        start: where they began.
        trainable: how many numbers the masks are; a merge of no steps is said to train none.
        prune_below: ranks whose mask is not larger in absolute value are not kept.
    """
    layers: dict[str, dict[str, Any]] = {}
    for side, of_side in masks.items():
        for name, mask_R in of_side.items():
            entry = layers.setdefault(name, {"role": roles[name].value if name in roles else None})
            entry[side] = {
                "rank": mask_R.numel(),
                "kept": int((mask_R.abs() > prune_below).sum()),
                "mean_mask": round(float(mask_R.mean()), 4),
            }
    return {
        "method": method,
        "start": start.value,
        "trainable": trainable if losses else 0,
        "losses": [{name: round(value, 6) for name, value in terms.items()} for terms in losses],
        "layers": layers,
    }
