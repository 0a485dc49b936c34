"""ZipLoRA: a learned mask over the columns of either LoRA (Shah et al. 2023, arXiv 2311.13600).

Section 4, equations of "ZipLoRA": `dW = m_c * dW_c + m_s * dW_s` with merger vectors m, one number per column of a
layer, found by minimising

    L = |D(x_c; merged) - D(x_c; content)|^2 + |D(x_s; merged) - D(x_s; style)|^2 + lambda sum_i |m_c_i . m_s_i|

on noised pictures of both sides under their own captions. Adam at 0.01, 100 steps, lambda 0.01, both vectors starting
at 1. A column here is an output of the layer: so counted, SDXL's attention has the 1.33 M numbers reported for the
method. The last term is summed over layers and averaged over the columns of a layer, so that lambda means the same at
every width; the distillation is a mean over the elements of a picture likewise.

The result is exact: a mask over outputs scales the rows of the up factor.

J cases, S sides, N samples of a side, O outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from duolora.adapters import RankSpaceAdapter
from duolora.baselines.column_masks import ColumnMaskedLinear, swapped
from duolora.baselines.noised_cases import NoisedCases, predict_as
from duolora.baselines.pairing import merge_layers
from duolora.capture import CapturedPredictor
from duolora.errors import TrainingDiverged
from duolora.lora.parts import concatenate
from duolora.losses import squared_error
from duolora.method.merge_case import CONTENT, SIDES, STYLE
from duolora.runtime import memory_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from duolora.lora.weights import LoraLayer, LoraWeights
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase, PromptEmbeddings


def merge(
    base: DiffusionBase,
    cases: Sequence[MergeCase],
    *,
    steps: int = 100,
    learning_rate: float = 0.01,
    similarity_weight: float = 0.01,
    start: float = 1.0,
    batch_size: int = 1,
) -> list[LoraWeights]:
    """Learn the merger vectors of all cases, one U-Net pass a step.

    Args:
        base: the model both LoRAs were trained on.
        cases: the pairs to merge; they do not influence each other.
        steps: steps of Adam.
        learning_rate: of Adam.
        similarity_weight: lambda; worth a sweep, since it damps both sides: Adam lowers every number that the
            distillation does not hold.
        start: first value of all masks.
        batch_size: noised samples of each side in a step; every step has new ones.

    Raises:
        InvalidLora: a LoRA does not fit the base.
        TrainingDiverged: a mask stopped being finite.
        OutOfMemory: the device is too small.
    """
    with memory_errors():
        noised = NoisedCases.draw(base, cases, max(1, steps) * batch_size)
        tenants = [{side: case.loras[side] for side in SIDES} for case in cases]
        with RankSpaceAdapter(*tenants).inject(base.unet) as adapter:
            teacher_JSNCHW = predict_as(base, adapter, noised, range(len(SIDES)))
            students = {
                name: ColumnMaskedLinear(
                    layer.base,
                    {side: (layer.downs[side], layer.ups[side]) for side in layer.ranks},
                    dict.fromkeys(SIDES, start),
                )
                for name, layer in adapter.layers.items()
            }
        masks = [mask_JO for student in students.values() for mask_JO in student.masks.values()]
        optimizer = torch.optim.Adam(masks, lr=learning_rate)
        with swapped(base.unet, {name.removeprefix("unet."): student for name, student in students.items()}):
            predict = CapturedPredictor(base)
            for step in range(steps):
                samples = slice(step * batch_size, (step + 1) * batch_size)
                loss = distillation(predict, noised.span(samples), teacher_JSNCHW[:, :, samples])
                loss = loss + similarity_weight * similarity(students)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    if not all(bool(mask_JO.isfinite().all()) for mask_JO in masks):
        raise TrainingDiverged("ZipLoRA's merger vectors stopped being finite; try a lower learning rate")
    learned = {
        name: {side: mask_JO.detach().cpu() for side, mask_JO in student.masks.items()}
        for name, student in students.items()
    }
    return [_fold(case, learned, j) for j, case in enumerate(cases)]


def distillation(
    predict: Callable[[Tensor, Tensor, PromptEmbeddings], Tensor], samples: NoisedCases, teacher_JSNCHW: Tensor
) -> Tensor:
    """Sum, over cases and sides, the mean distance of what is attached from each side's own LoRA; scalar.

    A sum, so that under Adam no case feels the cases beside it.
    """
    student_JSNCHW = samples.predict(predict)
    errors_B = squared_error(student_JSNCHW.flatten(0, 2), teacher_JSNCHW.flatten(0, 2))
    return errors_B.view_as(samples.timesteps_JSN).mean(dim=2).sum()


def similarity(students: Mapping[str, ColumnMaskedLinear]) -> Tensor:
    """Sum `|m_c . m_s|` over cases and the layers that both sides change, averaged over columns; scalar."""
    terms = [
        (student.masks[CONTENT] * student.masks[STYLE]).abs().mean(dim=1).sum()
        for student in students.values()
        if CONTENT in student.masks and STYLE in student.masks
    ]
    return torch.stack(terms).sum() if terms else torch.zeros(())


def _fold(case: MergeCase, masks: Mapping[str, Mapping[str, Tensor]], tenant: int) -> LoraWeights:
    """Fold the masks of one case, layer -> side -> (J, O), into its ups."""

    def scale(name: str, parts: Mapping[str, LoraLayer]) -> LoraLayer:
        return concatenate(
            [
                part.with_factors(part.down_RI, part.up_OR * masks[name][side][tenant, :, None])
                for side, part in parts.items()
            ]
        )

    return merge_layers(case, scale)
