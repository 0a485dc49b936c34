"""Training LoRAs on a frozen base, several in one pass of the U-Net.

B samples of a step, C latent channels, H W latent size.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from duolora.adapters import fresh_lora, role_rows
from duolora.capture import CapturedPredictor
from duolora.errors import InvalidConfig, InvalidImage, TrainingDiverged
from duolora.events import Observer, Progress, Silent, advance
from duolora.images import load_pictures
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.losses import min_snr_weight, squared_error
from duolora.models.base import DiffusionBase, LatentMoments, PromptEmbeddings
from duolora.runtime import memory_errors
from duolora.whole_adapter import WholeAdapter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from duolora.config import LoraTrainConfig


@dataclass(frozen=True, slots=True, eq=False)
class ClassPictures:
    """What the base drew of a class by itself: the caption that it drew by, and the pictures, encoded."""

    caption: str
    moments: LatentMoments


@dataclass(frozen=True, slots=True)
class LoraTask:
    """One LoRA to train: its side, its pictures with a caption each, its configuration, and what it is to preserve."""

    side: str
    pictures: Sequence[Path]
    captions: Sequence[str]
    config: LoraTrainConfig
    preserved: ClassPictures | None = None

    def __post_init__(self) -> None:
        """Refuse a task without pictures, or with captions that do not match them."""
        if not self.pictures:
            raise InvalidImage(f"the {self.side} LoRA needs at least one picture")
        if len(self.pictures) != len(self.captions):
            raise InvalidImage(
                f"the {self.side} LoRA has {len(self.pictures)} pictures but {len(self.captions)} captions"
            )

    def seed(self, purpose: str) -> int:
        """Return the seed of one source of random numbers.

        The configuration's seed serves both sides of a job. Were they to start from the same factors, their ranks would
        lie in the same directions, as those of LoRAs that strangers trained never do, and a merge could not tell them
        apart.
        """
        return zlib.crc32(f"{self.side}/{purpose}/{self.config.seed}".encode())


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """What came out of one pool for one step: rows of its pictures, and (B, C, H, W) latents and noise, on the CPU."""

    rows_B: Tensor
    latents_BCHW: Tensor
    noise_BCHW: Tensor
    timesteps_B: Tensor


class Pool:
    """Encoded pictures with a caption each, or one for all; draws samples of them by random numbers of its own."""

    def __init__(self, base: DiffusionBase, moments: LatentMoments, captions: Sequence[str], seed: int) -> None:
        # On the CPU, as the random numbers are: the draws of many tasks then travel to the device in one copy.
        self._moments = LatentMoments(moments.mean_BCHW.cpu(), moments.std_BCHW.cpu())
        self._captions = captions
        self._encoded: PromptEmbeddings = base.encode_prompts(captions)
        self._schedule = base.schedule
        self._generator = base.runtime.generator(seed)

    def captions(self, rows_B: Tensor) -> list[str]:
        """Return the captions of pictures."""
        return [self._captions[row % len(self._captions)] for row in rows_B.tolist()]

    def prompts(self, rows_B: Tensor) -> PromptEmbeddings:
        """Return the encoded captions of pictures."""
        hidden_BTD = self._encoded.hidden_BTD
        return self._encoded[(rows_B % len(hidden_BTD)).to(hidden_BTD.device)]

    def draw(self, count: int) -> Draw:
        """Draw pictures, latents, timesteps and noise for one step."""
        generator = self._generator
        rows_B = torch.randint(self._moments.mean_BCHW.shape[0], (count,), generator=generator)
        latents_BCHW = self._moments.sample(rows_B, generator)
        noise_BCHW = torch.randn(latents_BCHW.shape, generator=generator)
        timesteps_B = torch.randint(self._schedule.timesteps, (count,), generator=generator)
        return Draw(rows_B, latents_BCHW, noise_BCHW, timesteps_B)


class CachedTask:
    """A task whose pictures and captions have been encoded once.

    Its pools are the caller's pictures and, where it preserves a class, the class pictures. What it draws does not
    depend on the tasks trained beside it, and what it draws of the caller's pictures not on the class pictures either.

    Raises:
        InvalidConfig: it is to preserve a class, but has no pictures of it.
    """

    def __init__(self, base: DiffusionBase, task: LoraTask) -> None:
        self.side = task.side
        self.config = task.config
        rgb_NCHW = load_pictures(task.pictures, task.config.resolution_px)
        captions = list(task.captions)
        if task.config.flip:
            rgb_NCHW = torch.cat([rgb_NCHW, rgb_NCHW.flip(-1)])
            captions *= 2
        self.pools = [Pool(base, base.encode_pictures(rgb_NCHW), captions, task.seed("pictures"))]
        if task.config.preservation.weight > 0:
            if task.preserved is None:
                raise InvalidConfig(
                    f"the {task.side} LoRA is to preserve its class, but no pictures of the class were drawn"
                )
            self.pools.append(Pool(base, task.preserved.moments, [task.preserved.caption], task.seed("class")))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Noised samples of several tasks for one step, on the device."""

    noisy_BCHW: Tensor
    noise_BCHW: Tensor
    timesteps_B: Tensor
    prompts: PromptEmbeddings

    @classmethod
    def gather(cls, base: DiffusionBase, tasks: Sequence[CachedTask], *, encodes: bool = False) -> Batch:
        """Let every pool of every task draw as many samples as the task's batch has, and noise what was drawn.

        Captions are encoded anew, in the roles assigned at the moment, if `encodes`; else as the base encodes them.
        """
        device = base.runtime.device
        pools = [(pool, task.config.batch_size) for task in tasks for pool in task.pools]
        draws = [pool.draw(count) for pool, count in pools]
        latents_BCHW = torch.cat([draw.latents_BCHW for draw in draws]).to(device)
        noise_BCHW = torch.cat([draw.noise_BCHW for draw in draws]).to(device)
        timesteps_B = torch.cat([draw.timesteps_B for draw in draws]).to(device)
        shown = [(pool, draw.rows_B) for (pool, _), draw in zip(pools, draws, strict=True)]
        if encodes:
            prompts = base.embed_prompts([caption for pool, rows_B in shown for caption in pool.captions(rows_B)])
        else:
            prompts = PromptEmbeddings.join([pool.prompts(rows_B) for pool, rows_B in shown])
        noisy_BCHW = base.schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        return cls(noisy_BCHW, noise_BCHW, timesteps_B, prompts)


def train_loras(
    base: DiffusionBase, tasks: Sequence[LoraTask], observer: Observer | None = None
) -> dict[str, LoraWeights]:
    """Train one LoRA per task; tasks share every pass of the U-Net, their gradients stay apart by their masks.

    Args:
        base: the frozen base model.
        tasks: LoRAs to train, with distinct sides and one resolution.
        observer: receives progress; steps are those of the longest task.

    Returns:
        Side -> trained LoRA in float32.

    Raises:
        InvalidImage: a picture cannot be read.
        LayerGroupEmpty: the base has no layers to adapt.
        TrainingDiverged: a loss is not finite.
        Cancelled: the observer asked to stop.
        OutOfMemory: the device is too small.
    """
    return train_tenants(base, [tasks], observer)[0]


def train_tenants(
    base: DiffusionBase, tenants: Sequence[Sequence[LoraTask]], observer: Observer | None = None
) -> list[dict[str, LoraWeights]]:
    """Train the LoRAs of several tenants in the same passes of the U-Net; each gets what it would get alone.

    Args:
        base: the frozen base model.
        tenants: the tasks of every tenant; task by task, all have the side and the configuration (but for the seed)
            of the first tenant's.
        observer: receives progress.

    Returns:
        For every tenant, side -> trained LoRA in float32.

    Raises:
        InvalidConfig: the tasks of two tenants differ in more than pictures, captions and seed.
        InvalidImage, LayerGroupEmpty, TrainingDiverged, Cancelled, OutOfMemory: as `train_loras`.
    """
    observer = observer or Silent()
    _require_alike(tenants)
    tasks = tenants[0]
    total = max(task.config.steps for task in tasks)
    observer.on_progress(Progress(step=0, total=total, note="encoding pictures"))
    with memory_errors():
        cached = [[CachedTask(base, task) for task in of_tenant] for of_tenant in tenants]
        untrained = [{task.side: _untrained(base, task) for task in of_tenant} for of_tenant in tenants]
        with WholeAdapter(base, untrained) as adapter:
            optimizer = torch.optim.AdamW(
                [{"params": adapter.train_factors(task.side), "lr": task.config.learning_rate} for task in tasks],
                weight_decay=0.0,
            )
            lesson = _Lesson(base, adapter, optimizer, cached)
            for step in range(total):
                loss = lesson.step(step)
                advance(observer, Progress(step=step + 1, total=total, loss=loss, note="training"))
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
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._optimizer = optimizer
        self._tenants = tenants
        self._encodes = any(task.config.text_encoder for task in tenants[0])
        # A recorded pass would keep the gradient of its inputs from the text encoders.
        self._predict = base.predict_noise if self._encodes else CapturedPredictor(base)
        self._together = adapter.switch_all_on() if any(task.config.company > 0 for task in tenants[0]) else 0

    def step(self, step: int) -> float:
        """Take one optimiser step for every task that is not finished; return the mean loss."""
        active = [role for role, task in enumerate(self._tenants[0]) if step < task.config.steps]
        loss = self._loss(active)
        for group, task in zip(self._optimizer.param_groups, self._tenants[0], strict=True):
            group["lr"] = task.config.learning_rate * min(1.0, (step + 1) / max(1, task.config.warmup_steps))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for role, group in enumerate(self._optimizer.param_groups):
            if role not in active:  # its gradient is zero, and a zero gradient still moves by AdamW's momentum
                for parameter in group["params"]:
                    parameter.grad = None
        self._optimizer.step()
        value = loss.item() / (len(active) * len(self._tenants))
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
