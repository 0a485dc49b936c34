"""Training LoRAs on a frozen base, several in one pass of the U-Net.

B samples of a step, C latent channels, H W latent size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.adapters import RankSpaceAdapter, fresh_lora, role_rows
from duolora.errors import InvalidImage, TrainingDiverged
from duolora.events import Observer, Progress, Silent, advance
from duolora.images import load_pictures
from duolora.losses import denoising_loss
from duolora.models.sdxl import LatentMoments, PromptEmbeddings, SdxlBase
from duolora.runtime import memory_errors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from duolora.config import LoraTrainConfig
    from duolora.lora.weights import LoraWeights


@dataclass(frozen=True, slots=True)
class LoraTask:
    """One LoRA to train: its side, its pictures with a caption each, and its configuration."""

    side: str
    pictures: Sequence[Path]
    captions: Sequence[str]
    config: LoraTrainConfig

    def __post_init__(self) -> None:
        """Refuse a task without pictures, or with captions that do not match them."""
        if not self.pictures:
            raise InvalidImage(f"the {self.side} LoRA needs at least one picture")
        if len(self.pictures) != len(self.captions):
            raise InvalidImage(
                f"the {self.side} LoRA has {len(self.pictures)} pictures but {len(self.captions)} captions"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Noised samples of one task for one step."""

    noisy_BCHW: Tensor
    noise_BCHW: Tensor
    timesteps_B: Tensor
    prompts: PromptEmbeddings


class CachedTask:
    """A task whose pictures and captions have been encoded once; draws the batch of every step.

    Every task has random numbers of its own, so what it draws does not depend on the tasks trained beside it.
    """

    def __init__(self, base: SdxlBase, task: LoraTask) -> None:
        self.side = task.side
        self.config = task.config
        rgb_NCHW = load_pictures(task.pictures, task.config.resolution_px)
        captions = list(task.captions)
        if task.config.flip:
            rgb_NCHW = torch.cat([rgb_NCHW, rgb_NCHW.flip(-1)])
            captions *= 2
        self._moments: LatentMoments = base.encode_pictures(rgb_NCHW)
        self._prompts: PromptEmbeddings = base.encode_prompts(captions)
        self._schedule = base.schedule
        self._device = base.runtime.device
        self._generator = base.runtime.generator(task.config.seed)

    def draw(self) -> Batch:
        """Draw pictures, latents, timesteps and noise for one step."""
        count, generator = self.config.batch_size, self._generator
        rows_B = torch.randint(self._moments.mean_BCHW.shape[0], (count,), generator=generator).to(self._device)
        latents_BCHW = self._moments.sample(rows_B, generator)
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator).to(self._device)
        timesteps_B = torch.randint(self._schedule.timesteps, (count,), generator=generator).to(self._device)
        noisy_BCHW = self._schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        return Batch(noisy_BCHW, noise_BCHW, timesteps_B, self._prompts[rows_B])


def train_loras(base: SdxlBase, tasks: Sequence[LoraTask], observer: Observer | None = None) -> dict[str, LoraWeights]:
    """Train one LoRA per task; tasks share every pass of the U-Net, their gradients stay apart by their masks.

    Args:
        base: the frozen base model.
        tasks: LoRAs to train, with distinct sides and one resolution.
        observer: receives progress; steps are those of the longest task.

    Returns:
        Side -> trained LoRA in float32.

    Raises:
        InvalidImage: a picture cannot be read.
        TrainingDiverged: a loss is not finite.
        Cancelled: the observer asked to stop.
        OutOfMemory: the device is too small.
    """
    observer = observer or Silent()
    total = max(task.config.steps for task in tasks)
    observer.on_progress(Progress(step=0, total=total, note="encoding pictures"))
    with memory_errors():
        cached = [CachedTask(base, task) for task in tasks]
        untrained = {task.side: _untrained(base, task.config) for task in tasks}
        with RankSpaceAdapter(untrained).inject(base.unet) as adapter:
            optimizer = torch.optim.AdamW(
                [{"params": adapter.train_factors(task.side), "lr": task.config.learning_rate} for task in tasks],
                weight_decay=0.0,
            )
            for step in range(total):
                loss = _train_step(base, adapter, optimizer, cached, step)
                advance(observer, Progress(step=step + 1, total=total, loss=loss, note="training"))
            return {task.side: adapter.export(task.side) for task in tasks}


def _untrained(base: SdxlBase, config: LoraTrainConfig) -> LoraWeights:
    """Return a LoRA that changes nothing yet."""
    # A seed of its own: the first noise of the training must not be the numbers that started the factors.
    generator = base.runtime.generator(config.seed + 1)
    return fresh_lora(base.unet, base.target_layers(config.targets), config.rank, generator)


def _train_step(
    base: SdxlBase,
    adapter: RankSpaceAdapter,
    optimizer: torch.optim.Optimizer,
    tasks: Sequence[CachedTask],
    step: int,
) -> float:
    """Take one optimiser step for every task that is not finished; return the mean loss."""
    active = [(role, task) for role, task in enumerate(tasks) if step < task.config.steps]
    batches = [task.draw() for _, task in active]
    counts = [batch.noise_BCHW.shape[0] for batch in batches]
    rows_B = role_rows([(role, n) for (role, _), n in zip(active, counts, strict=True)], base.runtime.device)
    adapter.assign(rows_B)
    timesteps_B = torch.cat([batch.timesteps_B for batch in batches])
    prediction_BCHW = base.predict_noise(
        torch.cat([batch.noisy_BCHW for batch in batches]),
        timesteps_B,
        PromptEmbeddings.join([batch.prompts for batch in batches]),
    )
    losses = [
        denoising_loss(predicted, batch.noise_BCHW, base.schedule.snr(batch.timesteps_B), task.config.snr_gamma).mean()
        for (_, task), batch, predicted in zip(active, batches, prediction_BCHW.split(counts), strict=True)
    ]
    loss = torch.stack(losses).sum()
    for group, task in zip(optimizer.param_groups, tasks, strict=True):
        group["lr"] = task.config.learning_rate * min(1.0, (step + 1) / max(1, task.config.warmup_steps))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    running = {role for role, _ in active}
    for role, group in enumerate(optimizer.param_groups):
        if role not in running:  # its gradient is zero, and a zero gradient still moves by AdamW's momentum
            for parameter in group["params"]:
                parameter.grad = None
    optimizer.step()
    value = loss.item() / len(losses)
    if not math.isfinite(value):
        raise TrainingDiverged(f"the loss is {value} at step {step + 1}; try a lower learning rate")
    return value
