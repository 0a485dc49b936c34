"""What a stage of the engine takes and gives: the call between the loop of the engine process and `stages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from duolora.job_configs import JobConfig
    from duolora.keeping import Keeper


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOfJob:
    """A stage of a job and its folders.

    `inputs_dir` holds `content/000.png`..., `style/000.png`..., the files of the upstream stages by their names, and in
    `loras` those that came with the job: `content_0.safetensors`, `drawing_1.safetensors`. `outputs_dir` is empty.
    """

    job: str
    stage: str
    config: JobConfig
    inputs_dir: Path
    outputs_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """One stage to run, or several trainings that share every pass of the U-Net; those of one job next to each other.

    `keeper` keeps checkpoints, and knows the one to go on from. If `spares_memory`, an attempt of the stage ran out of
    memory before. `shows` is told of outputs that are complete before the stage is; they are among its outputs, too.
    """

    base: str
    members: tuple[StageOfJob, ...]
    keeper: Keeper | None = None
    spares_memory: bool = False
    shows: Callable[[Output], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished file of a member, given by its place, in its `outputs_dir`; `name` is unique in the job."""

    name: str
    filename: str
    content_type: str
    member: int = 0
