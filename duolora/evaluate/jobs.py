"""Jobs of a suite: pictures and captions of a pair with a seed, and its two LoRAs, trained once and kept on disk."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch

from duolora.baselines.recipe_case import RecipeCase
from duolora.class_pictures import with_class_pictures
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers
from duolora.lora_task import LoraTask
from duolora.merge import encode_side
from duolora.method.merge_case import CONTENT, SIDES, STYLE, MergeCase
from duolora.models.base import PromptEmbeddings
from duolora.personalize import captions
from duolora.train import train_tenants

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from duolora.config import PersonalizeConfig
    from duolora.events import Observer
    from duolora.lora.weights import LoraWeights
    from duolora.models.base import DiffusionBase

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Job:
    """One pair with one seed: its configuration; side -> pictures; side -> the file of its LoRA."""

    pair: str
    seed: int
    config: PersonalizeConfig
    pictures: Mapping[str, Sequence[Path]]
    loras: Mapping[str, Path]

    def task(self, side: str) -> LoraTask:
        """Return the training of one side, as a job of the service would do it."""
        settings = {CONTENT: self.config.content, STYLE: self.config.style}
        shown = self.pictures[side]
        return LoraTask(side, shown, captions(side, self.config.prompts, len(shown)), settings[side])

    def is_trained(self, side: str) -> bool:
        """Say whether the LoRA of a side is there, whole."""
        return _record(self.loras[side]).is_file()


def in_chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Split a sequence into parts of `size`, the last one perhaps shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def train_missing(base: DiffusionBase, jobs: Sequence[Job], tenants: int, observer: Observer | None = None) -> int:
    """Train the LoRAs that are not there yet, `tenants` at once; return how many.

    Both sides of a job share passes where every job has LoRAs of its own; one that several share is trained once.
    """
    missing = {side: {job.loras[side]: job for job in jobs if not job.is_trained(side)} for side in SIDES}
    if all(len(of_side) == len(jobs) for of_side in missing.values()):
        for chunk in in_chunks(jobs, tenants):
            _train(base, [[(job, side) for side in SIDES] for job in chunk], observer)
    else:
        for side, of_side in missing.items():
            for chunk in in_chunks(list(of_side.values()), tenants):
                _train(base, [[(job, side)] for job in chunk], observer)
    return sum(len(of_side) for of_side in missing.values())


def _train(base: DiffusionBase, tenants: Sequence[Sequence[tuple[Job, str]]], observer: Observer | None) -> None:
    """Train LoRAs in the same passes and write them, each with its share of the time."""
    started = time.monotonic()
    complete = [
        [with_class_pictures(base, job.task(side), job.config, observer) for job, side in tasks] for tasks in tenants
    ]
    trained = train_tenants(base, complete, observer)
    together = sum(len(tasks) for tasks in tenants)
    cost = {"seconds": (time.monotonic() - started) / together, "trained_together": together}
    for tasks, loras in zip(tenants, trained, strict=True):
        for job, side in tasks:
            path = job.loras[side]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_diffusers(loras[side], path)
            record = cost | {"trainable": loras[side].trainable_numbers}
            _record(path).write_text(json.dumps(record) + "\n", encoding="utf-8")  # last: the LoRA is whole


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What training both LoRAs of a job took: its share of the passes it was trained in, and how many numbers."""

    seconds: float
    trainable: int


def training_costs(jobs: Sequence[Job]) -> dict[tuple[str, int], TrainingCost]:
    """Return what training took, for each (pair, seed)."""
    costs = {}
    for job in jobs:
        records = [json.loads(_record(job.loras[side]).read_text(encoding="utf-8")) for side in SIDES]
        seconds = sum(float(record["seconds"]) for record in records)
        costs[job.pair, job.seed] = TrainingCost(seconds, sum(int(record["trainable"]) for record in records))
    return costs


def _record(lora: Path) -> Path:
    """Return where the record of a LoRA's training lies."""
    return lora.with_suffix(".json")


def recipe_case(job: Job) -> RecipeCase:
    """Return what a recipe that trains from pictures may look at."""
    tasks = [job.task(side) for side in SIDES]
    return RecipeCase(
        {task.side: task.pictures for task in tasks},
        {task.side: task.captions for task in tasks},
        job.config.merge.seed,
    )


def case_of_loras(loras: Mapping[str, LoraWeights], seed: int) -> MergeCase:
    """Return a case for a merge that looks at nothing but the LoRAs: no picture and no caption is encoded."""
    nothing = torch.empty(0)
    return MergeCase(loras, {}, PromptEmbeddings(nothing, nothing), seed)


def bare_case(job: Job) -> MergeCase:
    """Read the LoRAs of a job."""
    return case_of_loras({side: read_lora(job.loras[side]) for side in SIDES}, job.config.merge.seed)


def encoded_case(base: DiffusionBase, job: Job) -> MergeCase:
    """Read the LoRAs of a job and encode the pictures and captions that a merge may look at."""
    tasks = {side: job.task(side) for side in SIDES}
    return replace(
        bare_case(job),
        encoded={
            side: encode_side(base, task.pictures, task.captions, task.config.resolution_px)
            for side, task in tasks.items()
        },
        joint=base.encode_prompts([job.config.prompts.joint]),
    )
