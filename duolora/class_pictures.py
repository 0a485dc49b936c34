"""What a training is to preserve: pictures of the class, as the base draws them before anything is learned.

Prior preservation of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, section 3.2): the frozen base samples the class
with its own sampler, and the training learns these samples beside the caller's pictures.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from duolora.events import Observer, Progress, Quiet, Silent, advance
from duolora.generate import sample_tenants
from duolora.keeping import Keeper, Part, Saved, kept_when_stopped, part_name, resumed
from duolora.lora_task import ClassPictures, LoraTask
from duolora.method.merge_case import CONTENT
from duolora.models.base import LatentMoments
from duolora.runtime import memory_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duolora.job_configs import Training
    from duolora.models.base import DiffusionBase


def with_class_pictures(
    base: DiffusionBase, task: LoraTask, config: Training, observer: Observer | None = None
) -> LoraTask:
    """Let the base draw what one task is to preserve. Takes and raises what `all_with_class_pictures` does."""
    [[complete]] = all_with_class_pictures(base, [([task], config)], observer)
    return complete


def all_with_class_pictures(
    base: DiffusionBase,
    tenants: Sequence[tuple[Sequence[LoraTask], Training]],
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
) -> list[list[LoraTask]]:
    """Let the base draw what tasks are to preserve; a task that preserves nothing comes back as it is.

    Pictures are drawn as previews are, as many at once as a preview has. The task's own seed decides them.

    Args:
        base: the frozen base model.
        tenants: the training of every side of every tenant, with the configuration of its job: the words of the class,
            and how pictures are sampled.
        observer: is told before every batch, at step 0 of the training; may stop the work.
        keeper: keeps the pictures at step 0 once all are drawn, or when the work is stopped for a while before.

    Raises:
        Cancelled: the observer asked to stop.
        CheckpointUnusable: what the keeper found cannot be used.
        OutOfMemory: the device is too small.
    """
    observer = observer or Silent()
    saved = resumed(keeper)
    steps = max(task.config.steps for tasks, _ in tenants for task in tasks)
    galleries = [_Gallery(base, config, observer, keeper) for _, config in tenants]
    preserving = [
        (part_name(task.side, tenant), galleries[tenant], task)
        for tenant, (tasks, _) in enumerate(tenants)
        for task in tasks
        if task.config.preservation.weight > 0
    ]
    draws = saved is None or saved.step == 0  # a training that has begun goes on with the pictures that it had

    def state() -> Saved | None:
        drawn = {
            name: Part(gallery.drawn[task.side].tensors())
            for name, gallery, task in preserving
            if task.side in gallery.drawn
        }
        return Saved(0, steps, drawn) if drawn and draws else None

    with kept_when_stopped(keeper, state):
        for name, gallery, task in preserving:
            if saved is not None and name in saved.parts:
                gallery.hang(task, saved.parts[name])
            if draws:
                gallery.complete(task)
    if keeper is not None and keeper.is_due() and (complete := state()) is not None:
        keeper.keep(complete)
    return [
        [replace(task, preserved=gallery.drawn[task.side]) if task.side in gallery.drawn else task for task in tasks]
        for gallery, (tasks, _) in zip(galleries, tenants, strict=True)
    ]


class _Gallery:
    """The class pictures of every side, as far as they are drawn."""

    def __init__(
        self,
        base: DiffusionBase,
        config: Training,
        observer: Observer,
        keeper: Keeper | None,
    ) -> None:
        self.drawn: dict[str, ClassPictures] = {}
        self._base = base
        self._config = config
        self._observer = observer
        self._keeper = keeper

    def hang(self, task: LoraTask, part: Part) -> None:
        """Take over what a checkpoint kept for a side."""
        kept = ClassPictures.kept(self._caption(task), part)
        if kept is not None:
            self.drawn[task.side] = kept

    def complete(self, task: LoraTask) -> None:
        """Draw what a side still lacks, at least one batch; the rest only if the work is not to end early."""
        wanted, at_once = task.config.preservation.pictures, self._config.preview.images
        done = len(self.drawn[task.side].moments.mean_BCHW) if task.side in self.drawn else 0
        for first in range(done, wanted, at_once):
            note = f"drawing {first + 1} of {wanted} pictures of the class"
            advance(self._observer, Progress(step=0, total=task.config.steps, note=note))
            self._draw(task, first, min(at_once, wanted - first))
            if self._keeper is not None and self._keeper.should_finish():
                return

    def _draw(self, task: LoraTask, first: int, count: int) -> None:
        """Draw pictures `first` to `first + count` of a side and hang them behind the others."""
        caption = self._caption(task)
        sampling = self._config.preview.model_copy(update={"images": count, "resolution_px": task.config.resolution_px})
        [rgb_N3HW] = sample_tenants(
            self._base,
            None,
            [[caption] * count],
            sampling,
            [task.seed(f"class pictures from {first}")],
            observer=Quiet(self._observer),
        )
        with memory_errors():
            moments = self._base.encode_pictures(rgb_N3HW.clamp(-1, 1))
        parts = [self.drawn[task.side].moments] if task.side in self.drawn else []
        parts.append(LatentMoments(moments.mean_BCHW.cpu(), moments.std_BCHW.cpu()))
        joined = LatentMoments(
            torch.cat([part.mean_BCHW for part in parts]), torch.cat([part.std_BCHW for part in parts])
        )
        self.drawn[task.side] = ClassPictures(caption, joined)

    def _caption(self, task: LoraTask) -> str:
        prompts = self._config.prompts
        return prompts.content_class if task.side == CONTENT else prompts.style_class
