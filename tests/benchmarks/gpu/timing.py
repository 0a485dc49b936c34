"""How time and memory are taken: events on the device, the host's clock on a CPU, after warm-up; medians."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING

import torch

from duolora.events import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from duolora.events import Progress

GIB = 2**30

TFLOP_PER_LORA_IMAGE = 13.5
"""Arithmetic of a LoRA step, forward and gradients of the inputs, on one picture of 1024 px in SDXL's U-Net."""


@dataclass(slots=True)
class Region:
    """What a piece of work took: seconds of wall clock, and the most memory that tensors had at once."""

    seconds: float = 0.0
    peak_gib: float = 0.0


@contextmanager
def measured(device: torch.device) -> Iterator[Region]:
    """Measure what runs inside, to the end of the device's work; on a CPU no memory is counted.

    Regions inside each other each begin the count of memory anew.
    """
    region, on_gpu = Region(), device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    try:
        yield region
    finally:
        if on_gpu:
            torch.cuda.synchronize(device)
            region.peak_gib = torch.cuda.max_memory_allocated(device) / GIB
        region.seconds = time.perf_counter() - began


def step_seconds(step: Callable[[], object], device: torch.device, *, warm_up: int, times: int) -> list[float]:
    """Return the seconds of each of `times` steps, from the end of one to the end of the next.

    Marks are set on the device's own stream and read at the end, so that nothing waits for them in between.
    """
    for _ in range(warm_up):
        step()
    if device.type != "cuda":
        seconds = []
        for _ in range(times):
            began = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - began)
        return seconds
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
    torch.cuda.synchronize(device)
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def matmul_tflops(device: torch.device, size: int, *, warm_up: int = 5, times: int = 20) -> float:
    """Return the rate of a bfloat16 product of two random square matrices, in TFLOP/s by its median time."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(left)
    seconds = step_seconds(lambda: torch.mm(left, right, out=out), device, warm_up=warm_up, times=times)
    return 2 * size**3 / median(seconds) / 1e12


@dataclass(slots=True)
class Stamps(Silent):
    """An observer that notes when steps were done: the clock every `every` steps, with the device's work awaited.

    Reports that tell of no step (`step` 0, or another note than `note`) are passed over.
    """

    device: torch.device
    note: str
    every: int = 5
    skip: int = 5
    """Steps at the beginning that are not counted: recordings and warm-up."""
    times: list[tuple[int, float]] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)

    def on_progress(self, progress: Progress) -> None:
        """Note the time of a step that is due."""
        if progress.note != self.note or progress.step == 0:
            return
        if progress.loss is not None:
            self.losses[progress.step] = progress.loss
        due = self.times[-1][0] + self.every if self.times else self.skip
        if progress.step < due:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.times.append((progress.step, time.perf_counter()))

    def step_s(self) -> float:
        """Return the median seconds of a step.

        Raises:
            ValueError: too few steps were seen.
        """
        if len(self.times) < 2:
            raise ValueError(f"{len(self.times)} reports of {self.note!r} are too few to time a step by")
        return median(_differences(self.times))


def _differences(times: Sequence[tuple[int, float]]) -> list[float]:
    """Return the seconds a step between each two notes."""
    return [
        (later - earlier) / (later_step - earlier_step)
        for (earlier_step, earlier), (later_step, later) in pairwise(times)
    ]


def share_of(rate_tflops: float | None, s_per_image: float) -> float | None:
    """Return the share of a measured rate that a LoRA step of SDXL at 1024 px uses."""
    return None if not rate_tflops else TFLOP_PER_LORA_IMAGE / s_per_image / rate_tflops
