"""The stages of jobs over the files of a workspace; all that the worker knows of the engine."""

from __future__ import annotations

import gc
import json
import logging
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from duolora.drawings import draw_prompts, draw_results, draw_training, prompts_preview
from duolora.errors import InvalidConfig, OutOfMemory
from duolora.images import list_pictures
from duolora.job_configs import GenerateJobConfig, MergeJobConfig, Merging, Training, TrainJobConfig
from duolora.lora.read import read_lora
from duolora.memory import SDXL_UNET_NUMBERS, after_out_of_memory
from duolora.merge_plot import merge_plot
from duolora.models.registry import load_base
from duolora.personalize import TrainingJob, job_report, merge_sides, train_jobs, without_company
from duolora.runtime import choose_runtime, memory_errors
from duolora.slider import slider_strengths
from duolora.training_previews import train_showing
from worker.engine import files
from worker.engine.judging import judged
from worker.engine.keeping import SIDE_STAGES
from worker.engine.narration import tell_of_merge, tell_of_preview, tell_of_prompts, tell_of_training

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from duolora.events import Observer
    from duolora.lora.weights import LoraWeights
    from duolora.memory import MemoryProfile
    from duolora.models.base import DiffusionBase
    from duolora.runtime import Runtime
    from duolora.training_previews import Loras
    from worker.engine.protocol import Output, StageOfJob, StageRequest

MERGE_REPORT = "merge_report"
MOST_OF_TITLE = 200
"""Characters of a file's own title that a report repeats."""

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
        "generate": _generate,
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
    showing, every = _Showing(request, base), trainings[0].config.preview_every
    if every:
        trained = train_showing(base, trainings, showing, observer, every=every, keeper=request.keeper)
    else:
        trained = train_jobs(base, trainings, observer, keeper=request.keeper)
    loras = dict(zip(jobs, trained, strict=True))
    return showing.outputs + [
        replace(output, member=place)
        for place, member in enumerate(request.members)
        for side in TRAINED_SIDES[member.stage]
        for output in files.write_side(loras[member.job][side], side, member.outputs_dir, base.family)
    ]


@dataclass(frozen=True, slots=True)
class _Showing:
    """Draws with what is learnt by some step, and tells of it; `outputs` are the pictures so far."""

    request: StageRequest
    base: DiffusionBase
    outputs: list[Output] = field(default_factory=list)

    def __call__(self, step: int, loras: Loras, observer: Observer) -> None:
        """Draw with the LoRAs of every job, which come in the order of the members."""
        jobs = list(dict.fromkeys(member.job for member in self.request.members))
        for place, member in enumerate(self.request.members):
            if not isinstance(member.config, Training):
                raise _no_such_stage(member)
            for side in TRAINED_SIDES[member.stage]:
                learnt = {side: loras[jobs.index(member.job)][side]}
                picture = draw_training(self.base, learnt, member.config, step, observer)
                written = files.write_picture(picture, f"training_{side}_{step:06d}", member.outputs_dir)
                self.outputs.append(replace(written, member=place))
                if self.request.shows is not None:
                    self.request.shows(self.outputs[-1])


def _training(members: Sequence[StageOfJob]) -> TrainingJob:
    """Return what the stages of one job train: in company only what one stage trains on both sides."""
    sides = [side for member in members for side in TRAINED_SIDES[member.stage]]
    pictures = {side: list_pictures(members[0].inputs_dir / side) for side in sides}
    config = members[0].config
    if not isinstance(config, Training):
        raise _no_such_stage(members[0])
    return TrainingJob(pictures, without_company(config) if members[0].stage in SIDE_STAGES else config)


def _merge(request: StageRequest, base: DiffusionBase, observer: Observer) -> list[Output]:
    """Merge both LoRAs; write the result in both key formats, and what the merge did as numbers and as a picture."""
    [stage] = request.members
    config, folder = stage.config, stage.outputs_dir
    if not isinstance(config, Merging):
        raise _no_such_stage(stage)
    loras = files.side_loras(stage, base.layers())
    result = merge_sides(base, loras, files.pictures_of(stage), config, observer, keeper=request.keeper)
    tell_of_merge(result.report)
    return [
        *files.write_merged(result.weights, folder, base.family),
        files.write_json(result.report, MERGE_REPORT, folder),
        files.write_picture(merge_plot(result.report["layers"]), "merge_plot", folder),
    ]


def _package(request: StageRequest, base: DiffusionBase, observer: Observer) -> list[Output]:
    """Draw the preview, and the slider if there is to be one, and write the job's report."""
    [stage] = request.members
    config, folder = stage.config, stage.outputs_dir
    if isinstance(config, GenerateJobConfig):
        raise _no_such_stage(stage)
    loras = files.side_loras(stage, base.layers())
    made: dict[str, Any] = {}
    if isinstance(config, MergeJobConfig):
        made["loras"] = [{"side": side, **_about(lora)} for side, lora in loras.items()]
    if not isinstance(config, TrainJobConfig):
        loras["merged"] = read_lora(stage.inputs_dir / files.MERGED, base.layers())
        made["merge"] = json.loads((stage.inputs_dir / f"{MERGE_REPORT}.json").read_text())
    tell_of_preview(config.preview)
    pictures = files.pictures_of(stage)
    results = draw_results(base, loras, pictures, config, observer, keeper=request.keeper)
    made["likeness"] = judged(base, results.drawn, pictures)
    outputs = [files.write_picture(results.preview, "preview", folder)]
    for place, picture in enumerate(results.slider):
        outputs.append(files.write_picture(picture, f"slider_{place}", folder))
    if results.slider:
        made["slider"] = [
            {"artifact": f"slider_{place}", **strengths}
            for place, strengths in enumerate(slider_strengths(len(results.slider)))
        ]
    return [*outputs, files.write_json(job_report(base, config, **made), "report", folder)]


def _generate(request: StageRequest, base: DiffusionBase, observer: Observer) -> list[Output]:
    """Draw the pictures of every prompt, and write what they are."""
    [stage] = request.members
    config, folder = stage.config, stage.outputs_dir
    if not isinstance(config, GenerateJobConfig):
        raise _no_such_stage(stage)
    loras = files.drawing_loras(stage, len(config.strengths), base.layers())
    tell_of_prompts(config)
    drawn = draw_prompts(base, loras, config, observer, keeper=request.keeper)
    outputs: list[Output] = []
    told: list[dict[str, Any]] = []
    for prompt, pictures in zip(config.prompts, drawn, strict=False):  # a job that was stopped has fewer
        for ordinal, picture in enumerate(pictures):
            outputs.append(files.write_picture(picture, f"picture_{len(outputs):03d}", folder))
            told.append({"artifact": outputs[-1].name, "prompt": prompt, "ordinal": ordinal})
    used = [{"strength": strength, **_about(lora)} for lora, strength in zip(loras, config.strengths, strict=True)]
    report = job_report(base, config, loras=used, pictures=told)
    return [
        *outputs,
        files.write_picture(prompts_preview(config, drawn), "preview", folder),
        files.write_json(report, "report", folder),
    ]


def _about(lora: LoraWeights) -> dict[str, Any]:
    """Return what a report says of a LoRA that came with the job."""
    title = lora.metadata.get("modelspec.title")
    return {
        "title": None if title is None else title[:MOST_OF_TITLE],
        "layers": len(lora.layers),
        "ranks": sorted({layer.rank for layer in lora.layers.values()}),
    }


def _no_such_stage(stage: StageOfJob) -> InvalidConfig:
    """Return the refusal of a stage that jobs of its configuration do not have."""
    return InvalidConfig(f"a job of {type(stage.config).__name__} has no stage {stage.stage!r}")
