"""What a job's report says of how alike its pictures are to those it was given, where somebody can judge it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from duolora.errors import DuoLoraError
from duolora.evaluate.likeness import judge_for, likeness
from duolora.images import open_pictures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from PIL import Image

    from duolora.models.base import DiffusionBase

DINO_VARIABLE = "DUOLORA_DINO"
"""Folder or hub id of the DINO that compares subjects; the embedded base has an evaluator of its own."""
CSD_VARIABLE = "DUOLORA_CSD"
"""File, folder or hub id of the CSD that compares styles."""

log = logging.getLogger("worker.engine")


def judged(
    base: DiffusionBase, drawn: Mapping[str, Sequence[Image.Image]], pictures: Mapping[str, Sequence[Path]]
) -> dict[str, Any] | None:
    """Return what `duolora.evaluate.likeness.likeness` says, None if nobody can judge.

    A judge that cannot be loaded costs a line in the log, not the job, which has all but ended by now.
    """
    if not pictures:
        return None
    try:
        judge = judge_for(base, dino=os.environ.get(DINO_VARIABLE) or None, csd=os.environ.get(CSD_VARIABLE) or None)
    except DuoLoraError as error:
        log.warning("likeness is not judged: %s (%s, %s)", error, DINO_VARIABLE, CSD_VARIABLE)
        return None
    if judge is None:
        return None
    found = likeness(judge, drawn, {side: open_pictures(paths) for side, paths in pictures.items()})
    for name, values in found["loras"].items():
        told = ", ".join(f"{side} {value:.3f}" for side, value in values.items() if value is not None)
        log.info("likeness of what the %s LoRA draws: %s", name, told)
    return found
