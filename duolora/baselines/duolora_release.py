"""DuoLoRA as its released code behaves, faults included where they shape the result (arXiv 2504.13206).

Written from the list of observed behaviour in the project's method notes, section 3; no line of the release was
looked at. What is kept, with the number it has there:

- (1) Layer priors by lists of names. The middle block is called otherwise and `up_blocks.2` has no attention, so only
  `down_blocks.2` gets the content prior and `down_blocks.1` and `up_blocks.1` the style prior; `mid_block` and
  `up_blocks.0` get none. A list that matches nothing is passed over in silence.
- (2) The prior initialisation keeps every one: all masks start at 1.
- (4) The cycle carries no gradient. Its legs are two further teacher passes, so it only moves the target of the
  distillation from `cc` to `(cc + w csc) / (1 + w)`, and from `ss` likewise.
- (5) Both legs of a side's cycle run the *other* side's LoRA; the remove-leg should run the side's own.
- (6) The "nuclear norm" is the L2 norm of the mask and has no hinge: `|m_dom|_1 + |m_minor|_2 - |m_dom|_2`. Its weight
  here gives the 0.64 that the release starts with at rank 64: 0.01, as a mean over the layers with a prior.
- (7) q, k, v and out of an attention module share one mask per side, which is in the optimiser's list four times and
  so is stepped four times with one gradient.
- (8) Masks stand on the raw down rows, not in the SVD basis.

Not kept, because they say how the release fails to run and not what it converges to: one step an epoch instead of 100
steps (3), rank 64 and alpha hard-coded (9), dense files (10), eight passes of batch 1 a step (11). Which caption the
legs of the cycle see is not on record; here the add-leg sees the joint one and the remove-leg the side's own. At weight
0.01 that moves the target by a hundredth at most.

J cases, S sides, N samples of a side, R rank of one side.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch

from duolora.adapters import RankSpaceAdapter
from duolora.baselines.noised_cases import NoisedCases, assign_sides, predict_as
from duolora.baselines.zip_lora import distillation
from duolora.capture import CapturedPredictor
from duolora.checkpoints import learner_tensors, restore_learner
from duolora.config import MaskStart, MergeMethod
from duolora.errors import InvalidLora, TrainingDiverged
from duolora.events import Observer, Progress, Silent
from duolora.keeping import Keeper, Part, Saved, proceed, resumed
from duolora.merge import MergeResult, merge_report
from duolora.method.merge_case import CONTENT, SIDES, STYLE
from duolora.method.priors import Role
from duolora.method.ziprank import merge_by_masks
from duolora.models.base import PromptEmbeddings
from duolora.runtime import memory_errors
from duolora.thrift import recomputed_activations

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from duolora.lora.weights import LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase

PRIOR_BLOCKS = {CONTENT: ("down_blocks.2", "middle_block"), STYLE: ("down_blocks.1", "up_blocks.1", "up_blocks.2")}
"""Names of the blocks that are to have a prior, by the side that dominates them."""

REPEATED_STEPS = 4
"""Steps of the optimiser per loss: a shared mask is in its list once for each of q, k, v and out."""

_ATTENTION_PROJECTION = re.compile(r"\.to_(?:q|k|v|out\.0)$")


class Settings(TypedDict, total=False):
    """What `learn_masks` takes beside the cases; what is left out is as released."""

    steps: int
    learning_rate: float
    prior_weight: float
    constyle_weight: float
    batch_size: int
    prior_blocks: Mapping[str, Sequence[str]]
    observer: Observer | None
    keeper: Keeper | None


def merge(base: DiffusionBase, cases: Sequence[MergeCase], **settings: Unpack[Settings]) -> list[LoraWeights]:
    """Merge the LoRAs of all cases as the release would. Takes and raises what `learn_masks` does."""
    learned = learn_masks(base, cases, **settings)
    return [_fold(case, learned.of_case(j)) for j, case in enumerate(cases)]


def merge_as_job(base: DiffusionBase, case: MergeCase, **settings: Unpack[Settings]) -> MergeResult:
    """Merge one case and report on it with the fields that `merge_loras` reports.

    Takes and raises what `learn_masks` does.
    """
    started = time.monotonic()
    learned = learn_masks(base, [case], **settings)
    masks = learned.of_case(0)
    report = _report(masks, learned.losses) | {"seconds": time.monotonic() - started}
    return MergeResult(_fold(case, masks), report)


@dataclass(frozen=True, slots=True, eq=False)
class LearnedMasks:
    """What `learn_masks` found."""

    cases: Sequence[MergeCase]
    masks: Mapping[str, Mapping[str, Tensor]]
    """Side -> layer -> (J, R), with columns for the largest rank among the cases."""
    losses: Sequence[Mapping[str, float]]
    """The terms of every step, means over the cases."""

    def of_case(self, index: int) -> dict[str, dict[str, Tensor]]:
        """Return the masks of one case, side -> layer -> (R,)."""
        return {
            side: {name: self.masks[side][name][index, : layer.rank] for name, layer in lora.layers.items()}
            for side, lora in self.cases[index].loras.items()
        }


def learn_masks(
    base: DiffusionBase,
    cases: Sequence[MergeCase],
    *,
    steps: int = 100,
    learning_rate: float = 0.01,
    prior_weight: float = 0.01,
    constyle_weight: float = 0.01,
    batch_size: int = 1,
    prior_blocks: Mapping[str, Sequence[str]] = PRIOR_BLOCKS,
    observer: Observer | None = None,
    keeper: Keeper | None = None,
) -> LearnedMasks:
    """Learn the masks of all cases as the release would, one U-Net pass with gradient a step.

    Args:
        base: the model both LoRAs were trained on.
        cases: the pairs to merge; they do not influence each other.
        steps: losses evaluated; the optimiser steps four times on each.
        learning_rate: of Adam.
        prior_weight: weight of the layer prior, a mean over the layers that have one.
        constyle_weight: w of the cycle.
        batch_size: noised samples of each side in a step; every step has new ones.
        prior_blocks: dominant side -> names of blocks.
        observer: receives progress; asked after every step whether to stop.
        keeper: keeps checkpoints, as in `duolora.merge.merge_loras`.

    Raises:
        InvalidLora: a LoRA does not fit the base, or its ranks differ inside one attention module.
        TrainingDiverged: a mask stopped being finite.
        Cancelled: the observer asked for it.
        CheckpointUnusable: what the keeper found is not of this merge.
        OutOfMemory: the device is too small.
    """
    observer, saved = observer or Silent(), resumed(keeper)
    first = 0 if saved is None else min(saved.step, steps)
    observer.on_progress(Progress(step=first, total=steps, note="preparing the merge"))
    tenants = [{side: case.loras[side] for side in SIDES} for case in cases]
    with memory_errors():
        noised = NoisedCases.draw(base, cases, max(1, steps) * batch_size)
        with RankSpaceAdapter(*tenants).inject(base.unet) as adapter:
            joint = PromptEmbeddings.join([case.joint for case in cases])
            target_JSNCHW = distillation_target(base, adapter, noised, joint, constyle_weight)
            learner = _Learner(SharedMasks.over(adapter, prior_blocks), learning_rate, len(cases), saved)
            predict = base.predict_noise if base.memory.recomputes_merge else CapturedPredictor(base)
            assign_sides(adapter, noised.span(slice(0, batch_size)), [adapter.merged] * len(SIDES))
            with recomputed_activations(base, adapter) if base.memory.recomputes_merge else nullcontext():
                for step in range(first, steps):
                    samples = slice(step * batch_size, (step + 1) * batch_size)
                    error = partial(distillation, predict, noised.span(samples), target_JSNCHW[:, :, samples])
                    loss = learner.step(error, prior_weight=prior_weight, constyle_weight=constyle_weight)
                    progress = Progress(step=step + 1, total=steps, loss=loss, note="merging")
                    if not proceed(observer, keeper, progress, learner.parts):
                        break
            masks = learner.shared.by_layer()
    _require_finite(masks)
    return LearnedMasks(cases, masks, learner.losses)


class _Learner:
    """The release's masks, their optimiser and the losses so far."""

    def __init__(self, shared: SharedMasks, learning_rate: float, cases: int, saved: Saved | None) -> None:
        """Begin, or go on from a checkpoint; raises CheckpointUnusable if it does not fit."""
        self.shared = shared
        self.losses: list[dict[str, float]] = []
        self._cases = cases
        self._optimizer = torch.optim.Adam(shared.leaves, lr=learning_rate)
        self._named = {
            f"{side}/{module}": mask_JR
            for side, of_side in shared.by_module.items()
            for module, mask_JR in of_side.items()
        }
        if saved is not None:
            part = saved.part("masks")
            restore_learner(self._named, self._optimizer, part)
            self.losses += part.value("losses")

    def step(self, error: Callable[[], Tensor], *, prior_weight: float, constyle_weight: float) -> float:
        """Evaluate the loss once and step on it as often as released; return it, a mean over the cases."""
        self._optimizer.zero_grad(set_to_none=True)
        with self.shared.spread():
            distilled = error()
            # cc and csc both pull: (1 + w) times the distance from their weighted mean, up to a constant.
            prior = self.shared.prior_J().sum()
            loss = (1 + constyle_weight) * distilled + prior_weight * prior
            loss.backward()
        for _ in range(REPEATED_STEPS):
            self._optimizer.step()
        self.losses.append(_means(self._cases, distillation=distilled, prior=prior, total=loss))
        return self.losses[-1]["total"]

    def parts(self) -> dict[str, Part]:
        """Return what is needed to go on after the last step; the samples come from the seed."""
        return {"masks": Part(learner_tensors(self._named, self._optimizer), {"losses": self.losses})}


def _means(cases: int, **sums: Tensor) -> dict[str, float]:
    """Return the terms of a step as means over the cases."""
    return {name: float(value.detach()) / cases for name, value in sums.items()}


def _require_finite(masks: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse masks that are not all finite."""
    if not all(bool(mask_JR.isfinite().all()) for of_side in masks.values() for mask_JR in of_side.values()):
        raise TrainingDiverged("the release's masks stopped being finite; try a lower learning rate")


def distillation_target(
    base: DiffusionBase, adapter: RankSpaceAdapter, noised: NoisedCases, joint: PromptEmbeddings, constyle_weight: float
) -> Tensor:
    """Return what the merged model is held to on every sample, (J, S, N, C, H, W): `(cc + w csc) / (1 + w)`.

    Args:
        base: the model, with the adapter attached.
        adapter: both LoRAs of every case, roles content and style.
        noised: samples of both sides.
        joint: the joint caption, a row per case.
        constyle_weight: w; 0 skips the cycle.
    """
    own, other = (0, 1), (1, 0)
    direct_JSNCHW = predict_as(base, adapter, noised, own)
    if constyle_weight == 0:
        return direct_JSNCHW
    added_JSNCHW = predict_as(base, adapter, noised.under(joint), other)
    flat = (noised.noisy_JSNCHW.flatten(0, 2), added_JSNCHW.flatten(0, 2), noised.timesteps_JSN.flatten())
    clean_BCHW = base.schedule.predict_clean(*flat)
    again_BCHW = base.schedule.add_noise(clean_BCHW, noised.noise_JSNCHW.flatten(0, 2), flat[2])
    styled = replace(noised, noisy_JSNCHW=again_BCHW.view_as(noised.noisy_JSNCHW))
    cycled_JSNCHW = predict_as(base, adapter, styled, other)  # the wrong adapter, as released
    return (direct_JSNCHW + constyle_weight * cycled_JSNCHW) / (1 + constyle_weight)


@dataclass(frozen=True, slots=True, eq=False)
class SharedMasks:
    """The release's masks: one per side and attention module, seen by all its projections."""

    by_module: Mapping[str, Mapping[str, nn.Parameter]]
    """Side -> module -> (J, R)."""
    layers: Mapping[str, Mapping[str, str]]
    """Side -> layer -> its module."""
    copies: Mapping[str, nn.Parameter]
    """Layer -> the adapter's own mask, (J, R of both sides), which holds a copy: it must stay where it is in memory."""
    prior_layers: Sequence[tuple[str, str, float]]
    """Modules with a prior that both sides change: (module, dominant side, its share of all layers with a prior)."""

    @classmethod
    def over(cls, adapter: RankSpaceAdapter, prior_blocks: Mapping[str, Sequence[str]]) -> SharedMasks:
        """Start all masks of an attached adapter at 1.

        Raises:
            InvalidLora: layers of one attention module have different ranks.
        """
        by_module: dict[str, dict[str, nn.Parameter]] = {side: {} for side in SIDES}
        layers: dict[str, dict[str, str]] = {side: {} for side in SIDES}
        members: dict[tuple[str, str], int] = defaultdict(int)
        for name, layer in adapter.layers.items():
            module = mask_module(name)
            for side, rank in layer.ranks.items():
                # Ranks that only another case has are no ones: they would count in the norms of the prior.
                start_JR = (layer.downs[side] != 0).any(dim=2).float()
                mask_JR = by_module[side].setdefault(module, torch.nn.Parameter(start_JR))
                if mask_JR.shape[1] != rank:
                    raise InvalidLora(
                        f"the release shares one mask among the layers of {module}, "
                        f"but they have ranks {mask_JR.shape[1]} and {rank}"
                    )
                layers[side][name] = module
            dominant = _dominant(name, prior_blocks)
            if dominant is not None and set(layer.ranks) == set(SIDES):
                members[module, dominant] += 1
        copies = dict(zip(adapter.layers, adapter.learn_masks(_per_layer(by_module, layers)), strict=True))
        total = max(1, sum(members.values()))
        shares = [(module, side, count / total) for (module, side), count in members.items()]
        return cls(by_module, layers, copies, shares)

    @property
    def leaves(self) -> list[nn.Parameter]:
        """All masks that learn."""
        return [mask_JR for of_side in self.by_module.values() for mask_JR in of_side.values()]

    @contextmanager
    def spread(self) -> Iterator[None]:
        """Lend the masks to their layers, and gather the layers' gradients when the context is left."""
        joined = [
            torch.cat(
                [self.by_module[side][of_side[name]] for side, of_side in self.layers.items() if name in of_side], 1
            )
            for name in self.copies
        ]
        copies = list(self.copies.values())
        with torch.no_grad():
            torch._foreach_copy_([*copies], joined)
        yield
        torch.autograd.backward(joined, [copy_JR.grad for copy_JR in copies])
        for copy_JR in copies:
            copy_JR.grad = None

    def by_layer(self) -> dict[str, dict[str, Tensor]]:
        """Return the present masks, side -> layer -> (J, R), on the CPU."""
        return {
            side: {name: mask_JR.detach().cpu() for name, mask_JR in of_side.items()}
            for side, of_side in _per_layer(self.by_module, self.layers).items()
        }

    def prior_J(self) -> Tensor:
        """Return the layer prior of every case, (J,): a mean over the layers that have one, unbounded below."""
        other = {CONTENT: STYLE, STYLE: CONTENT}
        terms = [
            share * release_prior(self.by_module[dominant][module], self.by_module[other[dominant]][module])
            for module, dominant, share in self.prior_layers
        ]
        return torch.stack(terms).sum(dim=0) if terms else torch.zeros(1)


def mask_module(name: str) -> str:
    """Return the module whose mask a layer uses: its attention module, or for any other layer the layer itself."""
    return _ATTENTION_PROJECTION.sub("", name)


def _per_layer(
    by_module: Mapping[str, Mapping[str, nn.Parameter]], layers: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, Tensor]]:
    """Look up the mask of every layer in its module, side -> layer -> (J, R)."""
    return {
        side: {name: by_module[side][module] for name, module in of_side.items()} for side, of_side in layers.items()
    }


def release_prior(dominant_JR: Tensor, minor_JR: Tensor) -> Tensor:
    """`|m_dom|_1 + (|m_minor|_2 - |m_dom|_2)`, (J,): the L2 norm where a nuclear norm was meant, and no hinge."""
    rank_J: Tensor = torch.linalg.vector_norm(minor_JR, dim=1) - torch.linalg.vector_norm(dominant_JR, dim=1)
    return dominant_JR.abs().sum(dim=1) + rank_J


def _dominant(name: str, prior_blocks: Mapping[str, Sequence[str]]) -> str | None:
    """Side whose list names the block of a layer, if any does."""
    for side, blocks in prior_blocks.items():
        if any(f".{block}." in name for block in blocks):
            return side
    return None


def _fold(case: MergeCase, masks: Mapping[str, Mapping[str, Tensor]]) -> LoraWeights:
    """Fold the masks of one case, side -> layer -> (R,), into its LoRAs, which have alpha = rank."""
    return merge_by_masks({side: case.loras[side].folded() for side in SIDES}, masks)


def _report(masks: Mapping[str, Mapping[str, Tensor]], losses: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Describe a merge as ours are described; layers of one attention module share their numbers, which count once."""
    shared = {(side, mask_module(name)): mask_R.numel() for side in masks for name, mask_R in masks[side].items()}
    dominant = {name: _dominant(name, PRIOR_BLOCKS) for of_side in masks.values() for name in of_side}
    return merge_report(
        masks,
        {name: Role(side) for name, side in dominant.items() if side is not None},
        losses,
        method=MergeMethod.RELEASE.value,
        start=MaskStart.ONES,
        trainable=sum(shared.values()),
    )
