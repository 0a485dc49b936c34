"""Calls methods on jobs and draws with what they made, with a clock that waits for the device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.evaluate.jobs import Job, bare_case, encoded_case, recipe_case
from duolora.evaluate.methods import Kind, Knobs, Method
from duolora.generate import Attached, sample_tenants
from duolora.lora.weights import LoraWeights

if TYPE_CHECKING:
    from torch import Tensor

    from duolora.config import GenerateConfig
    from duolora.evaluate.host_pool import HostPool
    from duolora.method.merge_case import MergeCase
    from duolora.models.base import DiffusionBase

Made = Sequence[LoraWeights] | Attached
"""What a method leaves: a LoRA for each job, or what samples them all."""

# Legend: J jobs, n pictures of each, H/W pixels.


@dataclass(frozen=True, slots=True, eq=False)
class Called:
    """What a method made of some jobs: its result, its seconds for each, and how many numbers it trained for each."""

    made: Made
    seconds: float
    trainable: Sequence[int]


class Caller:
    """Calls methods on the jobs of one group.

    What a merge may look at is read, and its pictures encoded, once for all methods; a merge that looks at no pictures
    does not cause any to be encoded.
    """

    def __init__(self, base: DiffusionBase, pool: HostPool) -> None:
        self._base, self._pool = base, pool
        self._bare: dict[tuple[str, int], MergeCase] = {}
        self._encoded: dict[tuple[str, int], MergeCase] = {}

    def call(self, method: Method, knobs: Knobs, jobs: Sequence[Job]) -> Called:
        """Run a method on jobs.

        The clock does not see pictures being encoded for a merge: every merge is given them alike.

        Raises:
            TrainingDiverged, InvalidLora, OutOfMemory: as the method.
        """
        if method.on_host and len(jobs) > 1:
            made, seconds = self._pool.merge(method.call, knobs, [(job.loras, job.config.merge.seed) for job in jobs])
            return Called(made, seconds, self._trained_numbers(method, knobs, made, jobs))
        inputs: list[object] = [self._input(method, knobs, job) for job in jobs]
        configured = (jobs[0].config,) if method.takes_config else ()
        started = self.clock()
        result: Made = method.call(self._base, inputs, *configured, **knobs)
        seconds = (self.clock() - started) / len(jobs)
        return Called(result, seconds, self._trained_numbers(method, knobs, result, jobs))

    def draw(
        self, made: Made, prompts: Sequence[Sequence[str]], config: GenerateConfig, seeds: Sequence[int]
    ) -> tuple[Tensor, float]:
        """Draw every job's prompts; return pictures (J,n,3,H,W) in [0,1] and the seconds for each job."""
        started = self.clock()
        images = config.model_copy(update={"images": len(prompts[0])})
        rgb_Jn3HW = (sample_tenants(self._base, made, prompts, images, seeds) / 2 + 0.5).clamp(0, 1)
        return rgb_Jn3HW, (self.clock() - started) / len(prompts)

    def clock(self) -> float:
        """Return the time, once the device has done all it was told to."""
        if self._base.runtime.device.type == "cuda":
            torch.cuda.synchronize(self._base.runtime.device)
        return time.monotonic()

    def _trained_numbers(self, method: Method, knobs: Knobs, made: Made, jobs: Sequence[Job]) -> list[int]:
        """Count what a method trained for each job."""
        if method.kind is Kind.RECIPE and isinstance(made, Sequence):
            return [method.recipe_numbers(lora) for lora in made]
        return [method.trained_numbers(self._of_loras(job), job.config, knobs) for job in jobs]

    def _input(self, method: Method, knobs: Knobs, job: Job) -> object:
        """Return what a method may look at."""
        if method.kind is Kind.RECIPE:
            return recipe_case(job)
        if not method.sees_pictures(job.config, knobs):
            return self._of_loras(job)
        key = job.pair, job.seed
        if key not in self._encoded:
            self._encoded[key] = encoded_case(self._base, job)
        return self._encoded[key]

    def _of_loras(self, job: Job) -> MergeCase:
        """Return the case of a job that has its LoRAs and no pictures."""
        key = job.pair, job.seed
        if key not in self._bare:
            self._bare[key] = self._encoded[key] if key in self._encoded else bare_case(job)
        return self._bare[key]
