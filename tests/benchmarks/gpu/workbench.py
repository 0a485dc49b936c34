"""What all sections of the benchmark work with: the sizes of the run, the base, pictures to learn from."""

from __future__ import annotations

import gc
import random
import traceback
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from duolora.adapters import fresh_lora
from duolora.config import Prompts, TargetLayers
from duolora.errors import OutOfMemory
from duolora.lora.weights import LoraLayer, LoraWeights
from duolora.lora_task import LoraTask
from duolora.personalize import captions
from duolora.recipes import sdxl
from tests.benchmarks.gpu.random_sdxl import PUBLISHED, SMALL, SdxlSizes, random_sdxl

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from duolora.config import PersonalizeConfig
    from duolora.models.base import DiffusionBase
    from duolora.runtime import Runtime

OUT_OF_MEMORY = "out of memory"
FAILED = "failed:"
"""How the result of a row begins that was not measured for another reason."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is that a run measures."""

    sizes: SdxlSizes = PUBLISHED
    resolution_px: int = 1024
    rank: int = 64
    pictures: int = 5
    """Of each side; a DreamBooth subject has 4 to 6."""
    matmul_size: int = 8192
    warm_up: int = 2
    rival_steps: int = 6
    """Timed steps of diffusers' loop."""
    rival_batches: tuple[tuple[int, bool], ...] = ((1, False), (1, True), (4, False))
    """(batch, with gradient checkpointing) of diffusers' loop."""
    rival_merge_steps: int = 3
    images_a_pass: tuple[int, ...] = (1, 2, 4, 8)
    lora_steps: int = 25
    stamp_skip: int = 5
    stamp_every: int = 5
    merge_steps: int = 100
    sampling_steps: int = 30
    previews: int = 4
    job_steps: int = 500
    """Of either side."""
    curve_steps: int = 200
    curve_rank: int = 16
    curve_window: int = 20
    tenants: tuple[int, ...] = (1, 2, 4, 8)
    tenant_steps: int = 20
    profiles_gib: tuple[int, ...] = (80, 24, 16, 12, 8)
    profile_steps: int = 8


FULL = Scale()
TINY = Scale(
    sizes=SMALL,
    resolution_px=64,
    rank=4,
    pictures=2,
    matmul_size=128,
    warm_up=1,
    rival_steps=2,
    rival_batches=((1, False), (1, True)),
    rival_merge_steps=1,
    images_a_pass=(1, 2),
    lora_steps=3,
    stamp_skip=1,
    stamp_every=1,
    merge_steps=2,
    sampling_steps=2,
    previews=2,
    job_steps=2,
    curve_steps=4,
    curve_rank=4,
    curve_window=2,
    tenants=(1, 2),
    tenant_steps=3,
    profiles_gib=(8,),
    profile_steps=2,
)
"""Everything once, on a CPU, within a minute: shows that the program runs, and measures nothing."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a section found: figures by name, rows of a table, and what a reader must know of them."""

    figures: Mapping[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""


@dataclass(slots=True, eq=False)
class Workbench:
    """One run: sizes, device, a folder of its own, the figures known so far, and a base that is made when asked for."""

    scale: Scale
    runtime: Runtime
    folder: Path
    figures: dict[str, Any] = field(default_factory=dict)
    _base: DiffusionBase | None = None

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        return self.runtime.device

    @property
    def is_small(self) -> bool:
        """Whether nothing is measured really."""
        return self.scale.sizes is SMALL

    def base(self) -> DiffusionBase:
        """Return SDXL with random weights; about 15 s when it is made."""
        if self._base is None:
            self._base = random_sdxl(self.scale.sizes, self.runtime)
        return self._base

    def drop_base(self) -> None:
        """Give the base's memory back: others want the card, or a section failed with the base in its hands."""
        self._base = None
        release_memory()

    def job(self) -> PersonalizeConfig:
        """Return the recipe `sdxl` in the sizes of this run."""
        scale = self.scale
        config = sdxl("random-sdxl", Prompts(subject_class="dog"))
        size = {"resolution_px": scale.resolution_px}
        lora = config.content.model_copy(update={**size, "rank": scale.rank, "steps": scale.job_steps})
        preview = config.preview.model_copy(update={**size, "images": scale.previews, "steps": scale.sampling_steps})
        return config.model_copy(update={"content": lora, "style": lora, "preview": preview})

    def pictures(self, side: str) -> list[Path]:
        """Return a side's pictures, of noise; they are drawn when asked for first."""
        paths = [self.folder / f"{side}-{index}.png" for index in range(self.scale.pictures)]
        for path in paths:
            if not path.exists():
                draw_noise(path, self.scale.resolution_px)
        return paths

    def task(self, side: str, *, steps: int, batch_size: int = 1, seed: int = 0) -> LoraTask:
        """Return the training of one side as the job does it, of other length or batch."""
        config, paths = self.job(), self.pictures(side)
        changes = {"steps": steps, "batch_size": batch_size, "seed": seed}
        return LoraTask(
            side, paths, captions(side, config.prompts, len(paths)), config.content.model_copy(update=changes)
        )


def draw_noise(path: Path, side_px: int) -> None:
    """Write a square picture of blocks of random colours; its name decides them."""
    source = random.Random(zlib.crc32(path.name.encode()))
    picture = Image.frombytes("RGB", (32, 32), source.randbytes(32 * 32 * 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((side_px, side_px), Image.Resampling.BICUBIC).save(path)


def random_lora(base: DiffusionBase, rank: int, seed: int) -> LoraWeights:
    """Return a LoRA of all attention layers that changes what the base does, as trained ones do."""
    source = torch.Generator("cpu").manual_seed(seed)
    start = fresh_lora(base.unet, base.target_layers(TargetLayers.ATTENTION), rank, source)
    layers: dict[str, LoraLayer] = {}
    for name, layer in start.layers.items():
        up_OR = torch.randn(layer.up_OR.shape, generator=source) * (0.1 * layer.up_OR.shape[0] ** -0.5)
        layers[name] = replace(layer, up_OR=up_OR)
    return LoraWeights(layers)


def attempted(row: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Return a row with what was measured, or with why it was not: a card too small is a result, and no row of a
    section goes down with another.
    """
    try:
        return {**row, **measure(), "result": "ok"}
    except Exception as error:  # noqa: BLE001 - the boundary of a measurement, which records what it caught
        found = {**row, "result": OUT_OF_MEMORY if _is_of_memory(error) else f"{FAILED} {described(error)}"}
    release_memory()
    return found


def _is_of_memory(error: BaseException | None) -> bool:
    """Say whether an error, or one that it came from, is of too little memory; a recording may fail by its own word."""
    while error is not None:
        if isinstance(error, OutOfMemory | torch.cuda.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def described(error: BaseException) -> str:
    """Return an error and where it was raised, in a line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {error}".replace("\n", " ")[:600]


def release_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
