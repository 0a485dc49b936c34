"""What a training is to preserve: pictures of the class, as the base draws them before anything is learned.

Prior preservation of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, section 3.2): the frozen base samples the class
with its own sampler, and the training learns these samples beside the caller's pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from duolora.events import Observer, Progress, Silent, advance
from duolora.generate import sample_tenants
from duolora.method.merge_case import CONTENT
from duolora.models.base import LatentMoments
from duolora.runtime import memory_errors
from duolora.train import ClassPictures, LoraTask

if TYPE_CHECKING:
    from duolora.config import PersonalizeConfig
    from duolora.models.base import DiffusionBase


def with_class_pictures(
    base: DiffusionBase, task: LoraTask, config: PersonalizeConfig, observer: Observer | None = None
) -> LoraTask:
    """Let the base draw what a task is to preserve; a task that preserves nothing comes back as it is.

    Pictures are drawn as previews are, as many at once as a preview has. The task's own seed decides them.

    Args:
        base: the frozen base model.
        task: the training of one side.
        config: the job's configuration: the words of the class, and how pictures are sampled.
        observer: is told before every batch, at step 0 of the training; may stop the work there.

    Raises:
        Cancelled: the observer asked to stop.
        OutOfMemory: the device is too small.
    """
    preservation = task.config.preservation
    if preservation.weight == 0:
        return task
    caption = config.prompts.content_class if task.side == CONTENT else config.prompts.style_class
    parts: list[LatentMoments] = []
    for first in range(0, preservation.pictures, config.preview.images):
        note = f"drawing {first + 1} of {preservation.pictures} pictures of the class"
        advance(observer or Silent(), Progress(step=0, total=task.config.steps, note=note))
        count = min(config.preview.images, preservation.pictures - first)
        sampling = config.preview.model_copy(update={"images": count, "resolution_px": task.config.resolution_px})
        [rgb_N3HW] = sample_tenants(
            base, None, [[caption] * count], sampling, [task.seed(f"class pictures from {first}")]
        )
        with memory_errors():
            parts.append(base.encode_pictures(rgb_N3HW.clamp(-1, 1)))
    moments = LatentMoments(
        torch.cat([part.mean_BCHW.cpu() for part in parts]), torch.cat([part.std_BCHW.cpu() for part in parts])
    )
    return replace(task, preserved=ClassPictures(caption, moments))
