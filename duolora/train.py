"""Training LoRAs on a frozen base, several in one pass of the U-Net.

B samples of a step, C latent channels, H W latent size.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from duolora.adapters import fresh_lora
from duolora.errors import InvalidConfig
from duolora.events import Observer, Progress, Silent
from duolora.keeping import Keeper, proceed, resumed
from duolora.lesson import Lesson
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.lora_task import CachedTask, LoraTask
from duolora.models.parking import Part
from duolora.runtime import memory_errors
from duolora.thrift import recomputed_activations
from duolora.whole_adapter import WholeAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from duolora.config import LoraTrainConfig
    from duolora.models.base import DiffusionBase


def train_loras(
    base: DiffusionBase,
    tasks: Sequence[LoraTask],
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
) -> dict[str, LoraWeights]:
    """Train one LoRA per task; tasks share every pass of the U-Net, their gradients stay apart by their masks.

    The base's memory profile may split passes and compute activations again. The sum of the losses is the same but for
    the order of rounding: 1e-2 of each change's norm, as Adam makes much of little.

    Args:
        base: the frozen base model.
        tasks: LoRAs to train, with distinct sides and one resolution.
        observer: receives progress; steps are those of the longest task.
        keeper: keeps checkpoints, a part per side; a training that goes on from one gives, on a CPU, the bits that it
            would have given without the interruption.

    Returns:
        Side -> trained LoRA in float32.

    Raises:
        InvalidImage: a picture cannot be read.
        LayerGroupEmpty: the base has no layers to adapt.
        TrainingDiverged: a loss is not finite.
        Cancelled: the observer asked to stop.
        CheckpointUnusable: what the keeper found is not of this training.
        OutOfMemory: the device is too small.
    """
    return train_tenants(base, [tasks], observer, keeper=keeper)[0]


def train_tenants(
    base: DiffusionBase,
    tenants: Sequence[Sequence[LoraTask]],
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
    until: int | None = None,
) -> list[dict[str, LoraWeights]]:
    """Train the LoRAs of several tenants in the same passes of the U-Net; each gets what it would get alone.

    Args:
        base: the frozen base model.
        tenants: the tasks of every tenant; task by task, all have the side and the configuration (but for the seed)
            of the first tenant's.
        observer: receives progress.
        keeper: keeps checkpoints, a part per side and tenant (`duolora.keeping.part_name`). Each part is what that
            tenant's training alone would keep, so that a tenant goes on from it alone or beside others; bit for bit,
            on a CPU, beside as many others as before.
        until: the step after which it ends for now, if that is not the last one; a checkpoint of that step is only
            read.

    Returns:
        For every tenant, side -> trained LoRA in float32.

    Raises:
        InvalidConfig: the tasks of two tenants differ in more than pictures, captions and seed; or the base's memory
            profile is for one tenant.
        InvalidImage, LayerGroupEmpty, TrainingDiverged, Cancelled, CheckpointUnusable, OutOfMemory: as `train_loras`.
    """
    observer = observer or Silent()
    _require_alike(tenants)
    if not base.memory.shares_passes and len(tenants) > 1:
        raise InvalidConfig(f"with the memory profile {base.memory.name} only one tenant is trained at a time")
    tasks = tenants[0]
    saved = resumed(keeper)
    total = max(task.config.steps for task in tasks)
    first = 0 if saved is None else min(saved.step, total)
    observer.on_progress(Progress(step=first, total=total, note="encoding pictures"))
    with memory_errors():
        cached = [[CachedTask(base, task) for task in of_tenant] for of_tenant in tenants]
        untrained = [{task.side: _untrained(base, task) for task in of_tenant} for of_tenant in tenants]
        with (
            base.on_card(Part.TEXT) if any(task.config.text_encoder for task in tasks) else nullcontext(),
            WholeAdapter(base, untrained) as adapter,
            recomputed_activations(base, adapter) if base.memory.recomputes_training else nullcontext(),
        ):
            lesson = Lesson(base, adapter, cached)
            if saved is not None:
                lesson.restore(saved)
                saved = None  # it is as large as the training's state
            for step in range(first, total if until is None else min(until, total)):
                losses = lesson.step(step)
                mean = sum(losses) / len(losses)
                progress = Progress(step=step + 1, total=total, loss=mean, note="training", losses=tuple(losses))
                if not proceed(observer, keeper, progress, lesson.parts):
                    break
            return [{task.side: adapter.export(task.side, tenant) for task in tasks} for tenant in range(len(tenants))]


def _require_alike(tenants: Sequence[Sequence[LoraTask]]) -> None:
    """Refuse tenants that cannot share passes."""

    def shape(tasks: Sequence[LoraTask]) -> list[tuple[str, LoraTrainConfig]]:
        return [(task.side, task.config.model_copy(update={"seed": 0})) for task in tasks]

    if not tenants or any(shape(tasks) != shape(tenants[0]) for tasks in tenants):
        raise InvalidConfig("tenants trained together must have the same sides and configurations, seeds apart")
    sides = [task.side for task in tenants[0]]
    if len(set(sides)) < len(sides):
        raise InvalidConfig(f"every LoRA of a pass needs a side of its own, not {', '.join(sides)}")
    if len({task.config.resolution_px for task in tenants[0]}) > 1:
        raise InvalidConfig("LoRAs trained in one pass must have one resolution_px; train them one by one otherwise")
    if len(tenants[0]) == 1 and tenants[0][0].config.company > 0:
        raise InvalidConfig("company is for sides trained in one pass; one LoRA trained by itself has none")


def _untrained(base: DiffusionBase, task: LoraTask) -> LoraWeights:
    """Return a LoRA that changes nothing yet."""
    config, generator = task.config, base.runtime.generator(task.seed("start"))
    paths = {"unet": base.target_layers(config.targets)}
    for name in base.text_layers() if config.text_encoder else ():
        part, _, path = name.partition(".")
        paths.setdefault(part, []).append(path)
    layers: dict[str, LoraLayer] = {}
    for part, of_part in paths.items():
        layers |= fresh_lora(base.part(part), of_part, config.rank, generator, component=part).layers
    return LoraWeights(layers)
