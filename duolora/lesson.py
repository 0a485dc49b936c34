"""The steps of a training: draw, predict, weigh the losses, move the factors of all tasks and tenants at once.

B samples of a step, J tenants, n samples of a tenant, C latent channels, H W latent size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from duolora.adapters import role_rows
from duolora.checkpoints import joined_tenants, restore_learner, tenant_tensors
from duolora.errors import TrainingDiverged
from duolora.keeping import Part, Saved, part_name
from duolora.lora_task import Batch, CachedTask, Draws
from duolora.losses import min_snr_weight, squared_error
from duolora.models.base import PromptEmbeddings
from duolora.recorded_step import RecordedSteps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from duolora.config import LoraTrainConfig
    from duolora.models.base import DiffusionBase
    from duolora.whole_adapter import WholeAdapter


class Lesson:
    """The training of all tenants' tasks, step by step.

    On a GPU a step is recorded whole, and the next one is drawn while the device is at work.
    """

    def __init__(self, base: DiffusionBase, adapter: WholeAdapter, tenants: Sequence[Sequence[CachedTask]]) -> None:
        """Take the tasks of every tenant; one only where the base's memory profile says so."""
        self._base = base
        self._adapter = adapter
        self._tenants = tenants
        self._device = base.runtime.device
        self._encodes = any(task.config.text_encoder for task in tenants[0])
        self._part_size = _part_size(base, tenants[0])
        self._together = adapter.switch_all_on() if any(task.config.company > 0 for task in tenants[0]) else 0
        self._optimizer = self._make_optimizer()
        # Samples that meet all sides at once are mixed among the others. The short way keeps the
        # gradients of one pass only.
        takes_short_way = not self._together and self._part_size is None
        self._grouped = adapter.group_factors(base.runtime.dtype) if takes_short_way else None
        self._steps = RecordedSteps(self._device)
        self._ahead: tuple[Sequence[int], Draws] | None = None

    def step(self, step: int) -> list[float]:
        """Take one optimiser step for every task that is not finished; return the mean loss of every tenant.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        active = self._active(step)
        self._set_rates(step)
        draws = self._drawn(active)
        if self._part_size is not None:
            summed_J = self._learn_in_parts(active, draws, self._part_size)
        elif self._encodes:
            summed_J = self._learn(active, self._batch(active, draws))
        else:
            summed_J = self._learn_recorded(active, self._batch(active, draws))
        following = self._active(step + 1)
        self._ahead = (following, Draws.of(self._tasks(following))) if following else None
        losses = [summed / len(active) for summed in summed_J.tolist()]
        for loss in losses:
            if not math.isfinite(loss):
                raise TrainingDiverged(f"the loss is {loss} at step {step + 1}; try a lower learning rate")
        return losses

    def parts(self) -> dict[str, Part]:
        """Return what every side of every tenant needs to go on after the last step, by `part_name`."""
        return {
            part_name(task.side, tenant): self._part(role, tenant)
            for tenant, tasks in enumerate(self._tenants)
            for role, task in enumerate(tasks)
        }

    def restore(self, saved: Saved) -> None:
        """Go on from a checkpoint; one from before the first step holds no more than class pictures.

        Raises:
            CheckpointUnusable: it does not fit.
        """
        if saved.step == 0:
            return
        for role, task in enumerate(self._tenants[0]):
            parts = [saved.part(part_name(task.side, tenant)) for tenant in range(len(self._tenants))]
            restore_learner(self._adapter.factors(task.side), self._optimizer, joined_tenants(parts))
            for tasks, part in zip(self._tenants, parts, strict=True):
                for index, pool in enumerate(tasks[role].pools):
                    pool.set_random_state(part.tensor(_random(index)))

    def _make_optimizer(self) -> torch.optim.Optimizer:
        """Return AdamW over all sides' factors; on a GPU in one kernel, its rates where a recording can read them."""
        recorded = self._device.type == "cuda"
        groups = [
            {
                "params": self._adapter.train_factors(task.side),
                "lr": torch.tensor(task.config.learning_rate, device=self._device)
                if recorded
                else task.config.learning_rate,
            }
            for task in self._tenants[0]
        ]
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=recorded or None, capturable=recorded)

    def _set_rates(self, step: int) -> None:
        """Set the learning rate of every task for a step."""
        for group, task in zip(self._optimizer.param_groups, self._tenants[0], strict=True):
            rate = task.config.learning_rate * min(1.0, (step + 1) / max(1, task.config.warmup_steps))
            if isinstance(group["lr"], float):
                group["lr"] = rate
            else:
                group["lr"].fill_(rate)

    def _active(self, step: int) -> list[int]:
        """Return the roles of the tasks that are not finished before a step."""
        return [role for role, task in enumerate(self._tenants[0]) if step < task.config.steps]

    def _tasks(self, active: Sequence[int]) -> list[CachedTask]:
        """Return the tasks of the active roles, tenant after tenant."""
        return [tasks[role] for tasks in self._tenants for role in active]

    def _drawn(self, active: Sequence[int]) -> Draws:
        """Return what was drawn ahead for these roles, or draw."""
        if self._ahead is not None and list(self._ahead[0]) == list(active):
            return self._ahead[1]
        return Draws.of(self._tasks(active))

    def _batch(self, active: Sequence[int], draws: Draws) -> Batch:
        """Give the samples of a step their roles, and bring them to the device."""
        rows_n = role_rows([share for role in active for share in self._roles(role)], torch.device("cpu"))
        self._adapter.assign(rows_n.repeat(len(self._tenants)))
        return Batch.of(self._base, draws, encodes=self._encodes)

    def _learn(self, active: Sequence[int], batch: Batch) -> Tensor:
        """Take one optimiser step on a batch of the active roles; return every tenant's sum of losses, detached."""
        grouped = self._grouped if self._adapter.takes_groups() else None
        if grouped is not None:
            grouped.refresh()
        else:
            self._optimizer.zero_grad(set_to_none=True)
        loss_J = self._loss(active, batch)
        loss_J.sum().backward()
        if grouped is not None:
            grouped.hand_over([self._tenants[0][role].side for role in active])
        self._move(active)
        return loss_J.detach()

    def _learn_recorded(self, active: Sequence[int], batch: Batch) -> Tensor:
        """Take the same step as `_learn`, as a recording where there is a GPU."""

        def learn(noisy: Tensor, noise: Tensor, timesteps: Tensor, hidden: Tensor, pooled: Tensor) -> Tensor:
            return self._learn(active, Batch(noisy, noise, timesteps, PromptEmbeddings(hidden, pooled), ()))

        prompts = batch.prompts
        inputs = (batch.noisy_BCHW, batch.noise_BCHW, batch.timesteps_B, prompts.hidden_BTD, prompts.pooled_BP)
        return self._steps.run(tuple(active), learn, inputs)

    def _move(self, active: Sequence[int]) -> None:
        """Let the factors of the active roles take their step."""
        for role, group in enumerate(self._optimizer.param_groups):
            if role not in active:  # its gradient is zero, and a zero gradient still moves by AdamW's momentum
                for parameter in group["params"]:
                    parameter.grad = None
        self._optimizer.step()

    def _loss(self, active: Sequence[int], batch: Batch) -> Tensor:
        """Sum each task's own mean loss, tenant by tenant (J,): under Adam no task feels the others."""
        lots = [lot for role in active for lot in _lots(self._tenants[0][role].config)]
        predicted_BCHW = self._base.predict_noise(batch.noisy_BCHW, batch.timesteps_B, batch.prompts)
        snr_Jn = self._base.schedule.snr(batch.timesteps_B).view(len(self._tenants), -1)
        errors_Jn = squared_error(predicted_BCHW, batch.noise_BCHW).view(len(self._tenants), -1)
        counts = [lot.count for lot in lots]
        losses = [
            lot.weight * (min_snr_weight(snr_JB, lot.snr_gamma) * error_JB).mean(dim=1)
            for lot, snr_JB, error_JB in zip(
                lots, snr_Jn.split(counts, dim=1), errors_Jn.split(counts, dim=1), strict=True
            )
        ]
        return torch.stack(losses).sum(dim=0)

    def _learn_in_parts(self, active: Sequence[int], draws: Draws, part_size: int) -> Tensor:
        """Take the same step by gradients gathered from passes of a few samples; return the sum of losses, (1,)."""
        self._optimizer.zero_grad(set_to_none=True)
        rows_B = role_rows([share for role in active for share in self._roles(role)], torch.device("cpu"))
        batch = Batch.of(self._base, draws)
        weights_B = self._weights(active, batch)
        summed = torch.zeros((), device=self._device)
        for first in range(0, len(rows_B), part_size):
            some = slice(first, first + part_size)
            part = batch.samples(some)
            self._adapter.assign(rows_B[some])
            prompts = self._base.embed_prompts(part.captions) if self._encodes else part.prompts
            predicted_nCHW = self._base.predict_noise(part.noisy_BCHW, part.timesteps_B, prompts)
            loss = (weights_B[some] * squared_error(predicted_nCHW, part.noise_BCHW)).sum()
            loss.backward()
            summed += loss.detach()
        self._move(active)
        return summed.view(1)

    def _weights(self, active: Sequence[int], batch: Batch) -> Tensor:
        """Return the weight of every sample of one tenant in the sum of losses, (B,)."""
        lots = [lot for role in active for lot in _lots(self._tenants[0][role].config)]
        snrs = self._base.schedule.snr(batch.timesteps_B).split([lot.count for lot in lots])
        return torch.cat(
            [
                min_snr_weight(snr_n, lot.snr_gamma) * (lot.weight / lot.count)
                for lot, snr_n in zip(lots, snrs, strict=True)
            ]
        )

    def _part(self, role: int, tenant: int) -> Part:
        """Return what one side of a tenant needs to go on: factors, what the optimiser knows, where its draws were."""
        task = self._tenants[tenant][role]
        tensors = tenant_tensors(self._adapter.factors(task.side), self._optimizer, tenant)
        ahead = {} if self._ahead is None else self._ahead[1].states_before
        for index, pool in enumerate(task.pools):
            tensors[_random(index)] = ahead.get(pool, pool.random_state())
        if task.preserved is not None:
            tensors |= task.preserved.tensors()
        return Part(tensors)

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


def _random(pool: int) -> str:
    """Return the name under which a checkpoint keeps where the draws of a task's pool were."""
    return f"random/0/{pool}"


def _part_size(base: DiffusionBase, tasks: Sequence[CachedTask]) -> int | None:
    """Return the largest number of samples of a pass where steps are taken in parts; None where they are whole.

    What computes blocks again is not recorded, so that it goes in parts too, if only in one.
    """
    largest = sum(lot.count for task in tasks for lot in _lots(task.config))
    limit = min(base.memory.learns_at_once or largest, largest)
    return limit if base.memory.recomputes_training or limit < largest else None


def _lots(config: LoraTrainConfig) -> list[_Lot]:
    """Return the lots of a task, in the order of its pools."""
    own = _Lot(config.batch_size, 1.0, config.snr_gamma)
    weight = config.preservation.weight
    return [own, replace(own, weight=weight)] if weight > 0 else [own]
