"""Training LoRAs on a frozen base, several in one pass of the U-Net.

B samples of a step, C latent channels, H W latent size.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from duolora.adapters import fresh_lora, role_rows
from duolora.capture import CapturedPredictor
from duolora.checkpoints import learner_tensors, restore_learner
from duolora.errors import InvalidConfig, TrainingDiverged
from duolora.events import Observer, Progress, Silent
from duolora.keeping import Keeper, Part, Saved, proceed, resumed
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.lora_task import Batch, CachedTask, ClassPictures, LoraTask
from duolora.losses import min_snr_weight, squared_error
from duolora.runtime import memory_errors
from duolora.thrift import recomputed_activations
from duolora.whole_adapter import WholeAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from duolora.config import LoraTrainConfig
    from duolora.models.base import DiffusionBase

__all__ = ["Batch", "CachedTask", "ClassPictures", "LoraTask", "train_loras", "train_tenants"]


def train_loras(
    base: DiffusionBase,
    tasks: Sequence[LoraTask],
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
    thrifty: bool = False,
) -> dict[str, LoraWeights]:
    """Train one LoRA per task; tasks share every pass of the U-Net, their gradients stay apart by their masks.

    Args:
        base: the frozen base model.
        tasks: LoRAs to train, with distinct sides and one resolution.
        observer: receives progress; steps are those of the longest task.
        keeper: keeps checkpoints, a part per side; a training that goes on from one gives, on a CPU, the bits that it
            would have given without the interruption.
        thrifty: spare memory at the cost of time: sample by sample, activations computed twice. The sum of the losses
            is the same but for the order of rounding: 1e-2 of each change's norm, as Adam makes much of little.

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
    return train_tenants(base, [tasks], observer, keeper=keeper, thrifty=thrifty)[0]


def train_tenants(
    base: DiffusionBase,
    tenants: Sequence[Sequence[LoraTask]],
    observer: Observer | None = None,
    *,
    keeper: Keeper | None = None,
    thrifty: bool = False,
) -> list[dict[str, LoraWeights]]:
    """Train the LoRAs of several tenants in the same passes of the U-Net; each gets what it would get alone.

    Args:
        base: the frozen base model.
        tenants: the tasks of every tenant; task by task, all have the side and the configuration (but for the seed)
            of the first tenant's.
        observer: receives progress.
        keeper: keeps checkpoints.
        thrifty: spare memory, for one tenant.

    Returns:
        For every tenant, side -> trained LoRA in float32.

    Raises:
        InvalidConfig: the tasks of two tenants differ in more than pictures, captions and seed; or many are to be
            thrifty.
        InvalidImage, LayerGroupEmpty, TrainingDiverged, Cancelled, CheckpointUnusable, OutOfMemory: as `train_loras`.
    """
    observer = observer or Silent()
    _require_alike(tenants)
    if thrifty and len(tenants) > 1:
        raise InvalidConfig("a thrifty training is one tenant's; train several without, or one by one")
    tasks = tenants[0]
    saved = resumed(keeper)
    total = max(task.config.steps for task in tasks)
    first = 0 if saved is None else min(saved.step, total)
    observer.on_progress(Progress(step=first, total=total, note="encoding pictures"))
    with memory_errors():
        cached = [[CachedTask(base, task, thrifty=thrifty) for task in of_tenant] for of_tenant in tenants]
        untrained = [{task.side: _untrained(base, task) for task in of_tenant} for of_tenant in tenants]
        with (
            WholeAdapter(base, untrained) as adapter,
            recomputed_activations(base, adapter) if thrifty else nullcontext(),
        ):
            optimizer = torch.optim.AdamW(
                [{"params": adapter.train_factors(task.side), "lr": task.config.learning_rate} for task in tasks],
                weight_decay=0.0,
            )
            lesson = _Lesson(base, adapter, optimizer, cached, thrifty=thrifty)
            if saved is not None:
                lesson.restore(saved)
                saved = None  # it is as large as the training's state
            for step in range(first, total):
                loss = lesson.step(step)
                progress = Progress(step=step + 1, total=total, loss=loss, note="training")
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


class _Lesson:
    """The training of all tenants' tasks, step by step."""

    def __init__(
        self,
        base: DiffusionBase,
        adapter: WholeAdapter,
        optimizer: torch.optim.Optimizer,
        tenants: Sequence[Sequence[CachedTask]],
        *,
        thrifty: bool,
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._optimizer = optimizer
        self._tenants = tenants
        self._encodes = any(task.config.text_encoder for task in tenants[0])
        # A recorded pass would keep the gradient of its inputs from the text encoders.
        self._predict = base.predict_noise if self._encodes or thrifty else CapturedPredictor(base)
        self._together = adapter.switch_all_on() if any(task.config.company > 0 for task in tenants[0]) else 0
        self._thrifty = thrifty

    def step(self, step: int) -> float:
        """Take one optimiser step for every task that is not finished; return the mean loss."""
        active = [role for role, task in enumerate(self._tenants[0]) if step < task.config.steps]
        loss = None if self._thrifty else self._loss(active)
        for group, task in zip(self._optimizer.param_groups, self._tenants[0], strict=True):
            group["lr"] = task.config.learning_rate * min(1.0, (step + 1) / max(1, task.config.warmup_steps))
        self._optimizer.zero_grad(set_to_none=True)
        if loss is None:
            summed = self._learn_sample_by_sample(active)
        else:
            loss.backward()
            summed = loss
        for role, group in enumerate(self._optimizer.param_groups):
            if role not in active:  # its gradient is zero, and a zero gradient still moves by AdamW's momentum
                for parameter in group["params"]:
                    parameter.grad = None
        self._optimizer.step()
        value = summed.item() / (len(active) * len(self._tenants))
        if not math.isfinite(value):
            raise TrainingDiverged(f"the loss is {value} at step {step + 1}; try a lower learning rate")
        return value

    def _loss(self, active: Sequence[int]) -> Tensor:
        """Draw for the active roles and sum each task's own mean loss: under Adam no task feels the others."""
        lots = [lot for role in active for lot in _lots(self._tenants[0][role].config)]
        rows_n = role_rows([share for role in active for share in self._roles(role)], self._base.runtime.device)
        self._adapter.assign(rows_n.repeat(len(self._tenants)))
        tasks = [tasks[role] for tasks in self._tenants for role in active]
        batch = Batch.gather(self._base, tasks, encodes=self._encodes)
        predicted_BCHW = self._predict(batch.noisy_BCHW, batch.timesteps_B, batch.prompts)
        snr_Jn = self._base.schedule.snr(batch.timesteps_B).view(len(self._tenants), -1)
        errors_Jn = squared_error(predicted_BCHW, batch.noise_BCHW).view(len(self._tenants), -1)
        counts = [lot.count for lot in lots]
        losses = [
            lot.weight * (min_snr_weight(snr_JB, lot.snr_gamma) * error_JB).mean(dim=1).sum()
            for lot, snr_JB, error_JB in zip(
                lots, snr_Jn.split(counts, dim=1), errors_Jn.split(counts, dim=1), strict=True
            )
        ]
        return torch.stack(losses).sum()

    def _learn_sample_by_sample(self, active: Sequence[int]) -> Tensor:
        """Gather the gradients of the same sum of losses from passes of one sample each; return the sum."""
        tasks = [self._tenants[0][role] for role in active]
        lots = [lot for task in tasks for lot in _lots(task.config) for _ in range(lot.count)]
        rows_B = role_rows([share for role in active for share in self._roles(role)], self._base.runtime.device)
        batch = Batch.gather(self._base, tasks)
        snr_B = self._base.schedule.snr(batch.timesteps_B)
        summed = torch.zeros((), device=self._base.runtime.device)
        for row, lot in enumerate(lots):
            one = batch.sample(row)
            self._adapter.assign(rows_B[row : row + 1])
            prompts = self._base.embed_prompts(one.captions) if self._encodes else one.prompts
            predicted_1CHW = self._predict(one.noisy_BCHW, one.timesteps_B, prompts)
            weight_1 = min_snr_weight(snr_B[row : row + 1], lot.snr_gamma) * (lot.weight / lot.count)
            loss = (weight_1 * squared_error(predicted_1CHW, one.noise_BCHW)).sum()
            loss.backward()
            summed += loss.detach()
        return summed

    def parts(self) -> dict[str, Part]:
        """Return what every side needs to go on after the last step."""
        return {task.side: self._part(role) for role, task in enumerate(self._tenants[0])}

    def _part(self, role: int) -> Part:
        tensors = learner_tensors(self._adapter.factors(self._tenants[0][role].side), self._optimizer)
        for tenant, tasks in enumerate(self._tenants):
            for index, pool in enumerate(tasks[role].pools):
                tensors[f"random/{tenant}/{index}"] = pool.random_state()
            preserved = tasks[role].preserved
            if preserved is not None:
                tensors |= preserved.tensors(tenant)
        return Part(tensors)

    def restore(self, saved: Saved) -> None:
        """Go on from a checkpoint; one from before the first step holds no more than class pictures.

        Raises:
            CheckpointUnusable: it does not fit.
        """
        if saved.step == 0:
            return
        for role, task in enumerate(self._tenants[0]):
            part = saved.part(task.side)
            restore_learner(self._adapter.factors(task.side), self._optimizer, part)
            for tenant, tasks in enumerate(self._tenants):
                for index, pool in enumerate(tasks[role].pools):
                    pool.set_random_state(part.tensor(f"random/{tenant}/{index}"))

    def _roles(self, role: int) -> list[tuple[int, int]]:
        """Roles of a task's samples: some meet its own LoRA alone, some the LoRAs of all sides; the class its own."""
        config = self._tenants[0][role].config
        together = round(config.company * config.batch_size)
        own = [(role, config.batch_size - together), (self._together, together)]
        return [*own, (role, config.batch_size)] if config.preservation.weight > 0 else own


@dataclass(frozen=True, slots=True)
class _Lot:
    """Samples of a step that have one place in the loss: those that one pool of a task gave."""

    count: int
    weight: float
    snr_gamma: float | None


def _lots(config: LoraTrainConfig) -> list[_Lot]:
    """Return the lots of a task, in the order of its pools."""
    own = _Lot(config.batch_size, 1.0, config.snr_gamma)
    weight = config.preservation.weight
    return [own, replace(own, weight=weight)] if weight > 0 else [own]
