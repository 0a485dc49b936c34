"""What a stage of the engine takes and gives: the call between the loop of the engine process and `stages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.config import PersonalizeConfig
    from duolora.keeping import Keeper


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """One stage to run, or two that share every pass of the U-Net.

    `inputs_dir` holds `content/000.png`..., `style/000.png`... and the files of the upstream stages by their names;
    `outputs_dir` is empty. `partner` is the second stage, whose files go to the same folder. `keeper` keeps
    checkpoints, and knows the one to go on from. If `spares_memory`, an attempt of the
    stage ran out of memory before.
    """

    stage: str
    base: str
    config: PersonalizeConfig
    inputs_dir: Path
    outputs_dir: Path
    partner: str | None = None
    keeper: Keeper | None = None
    spares_memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished file in `outputs_dir`: `name` is the artifact's, unique in its job.

    `stage` is the one it is of, None for the request's own.
    """

    name: str
    filename: str
    content_type: str
    stage: str | None = None
