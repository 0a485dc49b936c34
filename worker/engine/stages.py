"""The stages of a `personalize` job over the files of a workspace; all that the worker knows of the engine."""

from __future__ import annotations

import gc
import json
import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from duolora.errors import InvalidConfig, OutOfMemory
from duolora.images import list_pictures
from duolora.lora.read import read_lora
from duolora.lora.write import write_diffusers, write_kohya
from duolora.memory import SDXL_UNET_NUMBERS, after_out_of_memory
from duolora.merge_plot import merge_plot
from duolora.models.registry import load_base
from duolora.personalize import TrainingJob, draw_preview, job_report, merge_sides, train_jobs, without_company
from duolora.runtime import choose_runtime, memory_errors
from worker.engine.keeping import SIDE_STAGES
from worker.engine.narration import tell_of_merge, tell_of_preview, tell_of_training
from worker.engine.protocol import Output, StageOfJob, StageRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from duolora.events import Observer
    from duolora.families.family import Family
    from duolora.lora.weights import LoraWeights
    from duolora.memory import MemoryProfile
    from duolora.models.base import DiffusionBase
    from duolora.runtime import Runtime

SAFETENSORS = "application/octet-stream"
MERGE_REPORT = "merge_report.json"
MERGE_PLOT = "merge_plot.png"

MEMORY_VARIABLE = "DUOLORA_MEMORY"
"""Names the memory profile of the engine process; `auto` or unset, the card decides."""

TRAINED_SIDES = {"loras": ("content", "style")} | {stage: (side,) for stage, side in SIDE_STAGES.items()}
"""Stages that train, and which sides; only they share passes."""

log = logging.getLogger("worker.engine")


class BaseModels:
    """Keeps the base of the last stage loaded, so that the next one starts at once.

    A base is loaded into a memory profile: that of the environment, or the largest that fits the device by then; for
    work that ran out of memory before, a smaller one.
    """

    def __init__(self) -> None:
        """Read the environment.

        Raises:
            InvalidConfig: a variable names no device, dtype or memory profile.
        """
        self._runtime = choose_runtime(
            os.environ.get("DUOLORA_DEVICE", "auto"),
            os.environ.get("DUOLORA_DTYPE", "auto"),
            os.environ.get(MEMORY_VARIABLE, "auto"),
            memory_source=MEMORY_VARIABLE,
        )
        self._loaded: DiffusionBase | None = None
        self._key: tuple[str, bool] | None = None
        self._profiles: dict[str, MemoryProfile] = {}

    @property
    def device(self) -> str:
        """Return the device the engine computes on."""
        return str(self._runtime.device)

    def warm(self, location: str) -> None:
        """Load a base ahead of its first stage."""
        self.get(location)

    def pairs(self, location: str) -> bool:
        """Say whether two sides are trained in one pass with advantage, once the base has been loaded."""
        return location not in self._profiles or self._profiles[location].pairs

    def shares_passes(self, location: str) -> bool:
        """Say whether several jobs are trained in one pass, once the base has been loaded."""
        return location in self._profiles and self._profiles[location].shares_passes

    def get(self, location: str, *, spares_memory: bool = False) -> DiffusionBase:
        """Return a loaded base; another one loaded before is dropped first, two may not fit.

        If `spares_memory`, it is in the profile for work that ran out of memory in the one it was in before.

        Raises:
            InvalidBase: it cannot be loaded.
            OutOfMemory: the device is too small for it.
        """
        key = (location, spares_memory)
        if self._loaded is None or self._key != key:
            self.drop()
            with memory_errors():
                self._loaded = load_base(location, self._sparing(location) if spares_memory else self._runtime)
            self._key = key
            if not spares_memory:
                self._profiles[location] = self._loaded.memory
            log.info("base loaded", extra={"base": location, "memory_profile": self._loaded.memory.name})
        return self._loaded

    def drop(self) -> None:
        """Give back the memory of the base that is loaded."""
        self._loaded = None
        gc.collect()  # its modules know each other in circles

    def _sparing(self, location: str) -> Runtime:
        """Return the runtime for work that ran out of memory; who used what is known of this process only."""
        used = self._profiles.get(location) or self._runtime.profile_for(SDXL_UNET_NUMBERS)
        return replace(self._runtime, memory=after_out_of_memory(used))


def run_stage(request: StageRequest, models: BaseModels, observer: Observer) -> list[Output]:
    """Run one stage, or several trainings in one pass, and return the files they wrote.

    Raises:
        DuoLoraError: any error of the engine.
    """
    stages: dict[str, Callable[[StageRequest, DiffusionBase, Observer], list[Output]]] = {
        **dict.fromkeys(TRAINED_SIDES, _train),
        "merge": _merge,
        "package": _package,
    }
    names = [member.stage for member in request.members]
    for name in names:
        if name not in stages:
            raise InvalidConfig(f"unknown stage {name!r}; known: {', '.join(stages)}")
    if len(names) > 1 and not set(names) <= set(TRAINED_SIDES):
        raise InvalidConfig(f"the stages {' and '.join(names)} cannot be run in one pass")
    base = models.get(request.base, spares_memory=request.spares_memory)
    try:
        return stages[names[0]](request, base, observer)
    except OutOfMemory:
        models.drop()  # a part of it may be on its way to the card or back
        raise


def _train(request: StageRequest, base: DiffusionBase, observer: Observer) -> list[Output]:
    """Train the LoRAs of all members' sides in the same passes; write both key formats of each."""
    jobs = list(dict.fromkeys(member.job for member in request.members))
    trainings = [_training([member for member in request.members if member.job == job]) for job in jobs]
    tell_of_training(base, {side: trainings[0].config.of_side(side) for side in trainings[0].pictures}, len(jobs))
    trained = train_jobs(base, trainings, observer, keeper=request.keeper)
    loras = dict(zip(jobs, trained, strict=True))
    return [
        replace(output, member=place)
        for place, member in enumerate(request.members)
        for side in TRAINED_SIDES[member.stage]
        for output in _write_side(loras[member.job][side], side, member.outputs_dir, base)
    ]


def _training(members: Sequence[StageOfJob]) -> TrainingJob:
    """Return what the stages of one job train: in company only what one stage trains on both sides."""
    sides = [side for member in members for side in TRAINED_SIDES[member.stage]]
    pictures = {side: list_pictures(members[0].inputs_dir / side) for side in sides}
    config = members[0].config
    return TrainingJob(pictures, without_company(config) if members[0].stage in SIDE_STAGES else config)


def _write_side(weights: LoraWeights, side: str, folder: Path, base: DiffusionBase) -> list[Output]:
    """Write one side's LoRA in both key formats."""
    return _write_both(weights, folder, base.family, name=f"{side}_lora", kohya_name=f"{side}_lora_kohya")


def _merge(request: StageRequest, base: DiffusionBase, observer: Observer) -> list[Output]:
    """Merge both LoRAs; write the result in both key formats, and what the merge did as numbers and as a picture."""
    [stage] = request.members
    result = merge_sides(
        base, _side_loras(stage, base), _pictures(stage), stage.config, observer, keeper=request.keeper
    )
    tell_of_merge(result.report)
    (stage.outputs_dir / MERGE_REPORT).write_text(json.dumps(result.report, indent=1))
    outputs = _write_both(
        result.weights, stage.outputs_dir, base.family, name="merged_diffusers", kohya_name="merged_kohya"
    )
    merge_plot(result.report["layers"]).save(stage.outputs_dir / MERGE_PLOT)
    return [
        *outputs,
        Output(name="merge_report", filename=MERGE_REPORT, content_type="application/json"),
        Output(name="merge_plot", filename=MERGE_PLOT, content_type="image/png"),
    ]


def _package(request: StageRequest, base: DiffusionBase, observer: Observer) -> list[Output]:
    """Draw the preview and write the job's report."""
    [stage] = request.members
    merged = read_lora(stage.inputs_dir / "merged.diffusers.safetensors", base.layers())
    loras = {**_side_loras(stage, base), "merged": merged}
    tell_of_preview(stage.config.preview)
    preview = draw_preview(base, loras, _pictures(stage), stage.config, observer, keeper=request.keeper)
    preview.save(stage.outputs_dir / "preview.png")
    merge_report = json.loads((stage.inputs_dir / MERGE_REPORT).read_text())
    report = job_report(base, merge_report, stage.config)
    (stage.outputs_dir / "report.json").write_text(json.dumps(report, indent=1))
    return [
        Output(name="preview", filename="preview.png", content_type="image/png"),
        Output(name="report", filename="report.json", content_type="application/json"),
    ]


def _pictures(stage: StageOfJob) -> dict[str, list[Path]]:
    """Return the pictures of both sides."""
    return {side: list_pictures(stage.inputs_dir / side) for side in ("content", "style")}


def _side_loras(stage: StageOfJob, base: DiffusionBase) -> dict[str, LoraWeights]:
    """Read the two trained LoRAs."""
    layers = base.layers()
    return {side: read_lora(stage.inputs_dir / f"{side}_lora.safetensors", layers) for side in ("content", "style")}


def _write_both(weights: LoraWeights, folder: Path, family: Family, *, name: str, kohya_name: str) -> list[Output]:
    """Write a LoRA in diffusers keys and in kohya keys."""
    stem, infix = ("merged", ".diffusers") if name == "merged_diffusers" else (name, "")
    write_diffusers(weights, folder / f"{stem}{infix}.safetensors", family=family)
    write_kohya(weights, folder / f"{stem}.kohya.safetensors", family=family)
    return [
        Output(name=name, filename=f"{stem}{infix}.safetensors", content_type=SAFETENSORS),
        Output(name=kohya_name, filename=f"{stem}.kohya.safetensors", content_type=SAFETENSORS),
    ]
