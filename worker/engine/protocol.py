"""What a stage of the engine takes and gives: the call between the loop of the engine process and `stages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.config import PersonalizeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """One stage to run.

    `inputs_dir` holds `content/000.png`..., `style/000.png`... and the files of the upstream stages by their names;
    `outputs_dir` and `checkpoints_dir` are empty. `resume_dir` holds the checkpoint to go on from, None for a start
    from the beginning.
    """

    stage: str
    base: str
    config: PersonalizeConfig
    inputs_dir: Path
    outputs_dir: Path
    checkpoints_dir: Path
    resume_dir: Path | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished file in `outputs_dir`: `name` is the artifact's, unique in its job."""

    name: str
    filename: str
    content_type: str
