"""What a stage of the engine takes and gives: the call between the loop of the engine process and `stages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from duolora.config import PersonalizeConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """One stage to run.

    `inputs_dir` holds `content/000.png`..., `style/000.png`... and the files of the upstream stages by their names;
    `outputs_dir` is empty. `checkpoint` is what the last attempt left, None for a start from the beginning.
    """

    stage: str
    base: str
    config: PersonalizeConfig
    inputs_dir: Path
    outputs_dir: Path
    checkpoint: dict[str, Any] | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A finished file in `outputs_dir`: `name` is the artifact's, unique in its job."""

    name: str
    filename: str
    content_type: str
