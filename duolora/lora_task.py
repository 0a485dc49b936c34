"""A LoRA to train, and what its training draws: pictures and captions encoded once, then samples by the step.

B samples of a step, C latent channels, H W latent size.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.checkpoints import set_random_state
from duolora.errors import InvalidConfig, InvalidImage
from duolora.images import load_pictures
from duolora.models.base import DiffusionBase, LatentMoments, PromptEmbeddings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from duolora.config import LoraTrainConfig
    from duolora.keeping import Part


@dataclass(frozen=True, slots=True, eq=False)
class ClassPictures:
    """What the base drew of a class by itself: the caption that it drew by, and the pictures, encoded."""

    caption: str
    moments: LatentMoments

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps of them."""
        return {"class/0/mean": self.moments.mean_BCHW, "class/0/std": self.moments.std_BCHW}

    @classmethod
    def kept(cls, caption: str, part: Part) -> ClassPictures | None:
        """Return the pictures that a checkpoint kept, None where it has none."""
        if "class/0/mean" not in part.tensors:
            return None
        moments = (part.tensor(f"class/0/{name}") for name in ("mean", "std"))
        return cls(caption, LatentMoments(*moments))


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

    def random_state(self) -> Tensor:
        """Return the state of the random numbers, which decides all that is drawn from here on; (bytes,) uint8."""
        return self._generator.get_state()

    def set_random_state(self, state: Tensor) -> None:
        """Draw from here on as the pool did that the state was taken of. Raises CheckpointUnusable if it is none."""
        set_random_state(self._generator, state)

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
        self.preserved = task.preserved
        rgb_NCHW = load_pictures(task.pictures, task.config.resolution_px)
        captions = list(task.captions)
        if task.config.flip:
            rgb_NCHW = torch.cat([rgb_NCHW, rgb_NCHW.flip(-1)])
            captions *= 2
        moments = base.encode_pictures(rgb_NCHW)
        self.pools = [Pool(base, moments, captions, task.seed("pictures"))]
        if task.config.preservation.weight > 0:
            if task.preserved is None:
                raise InvalidConfig(
                    f"the {task.side} LoRA is to preserve its class, but no pictures of the class were drawn"
                )
            self.pools.append(Pool(base, task.preserved.moments, [task.preserved.caption], task.seed("class")))


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """What the pools of several tasks gave for one step, on the CPU, and the states they had before."""

    of_pools: Sequence[tuple[Pool, Draw]]
    states_before: Mapping[Pool, Tensor]

    @classmethod
    def of(cls, tasks: Sequence[CachedTask]) -> Draws:
        """Let every pool of every task draw as many samples as the task's batch has."""
        pools = [(pool, task.config.batch_size) for task in tasks for pool in task.pools]
        states = {pool: pool.random_state() for pool, _ in pools}
        return cls([(pool, pool.draw(count)) for pool, count in pools], states)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Noised samples of several tasks for one step, on the device."""

    noisy_BCHW: Tensor
    noise_BCHW: Tensor
    timesteps_B: Tensor
    prompts: PromptEmbeddings
    captions: Sequence[str]

    @classmethod
    def gather(cls, base: DiffusionBase, tasks: Sequence[CachedTask]) -> Batch:
        """Draw for one step and noise what was drawn."""
        return cls.of(base, Draws.of(tasks))

    @classmethod
    def of(cls, base: DiffusionBase, draws: Draws, *, encodes: bool = False) -> Batch:
        """Bring what was drawn to the device and noise it.

        Captions are encoded anew, in the roles assigned at the moment, if `encodes`; else as the base encodes them.
        """
        device = base.runtime.device
        drawn = [draw for _, draw in draws.of_pools]
        latents_BCHW = torch.cat([draw.latents_BCHW for draw in drawn]).to(device)
        noise_BCHW = torch.cat([draw.noise_BCHW for draw in drawn]).to(device)
        timesteps_B = torch.cat([draw.timesteps_B for draw in drawn]).to(device)
        captions = [caption for pool, draw in draws.of_pools for caption in pool.captions(draw.rows_B)]
        if encodes:
            prompts = base.embed_prompts(captions)
        else:
            prompts = PromptEmbeddings.join([pool.prompts(draw.rows_B) for pool, draw in draws.of_pools])
        noisy_BCHW = base.schedule.add_noise(latents_BCHW, noise_BCHW, timesteps_B)
        return cls(noisy_BCHW, noise_BCHW, timesteps_B, prompts, captions)

    def samples(self, rows: slice) -> Batch:
        """Return some samples as a batch of their own."""
        prompts = PromptEmbeddings(self.prompts.hidden_BTD[rows], self.prompts.pooled_BP[rows])
        return Batch(self.noisy_BCHW[rows], self.noise_BCHW[rows], self.timesteps_B[rows], prompts, self.captions[rows])
