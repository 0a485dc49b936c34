"""What a LoRA file that was sent in is, told by its header, which a process of its own reads (`api.decoder.lora`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from api.decoder.client import DECODER
from api.decoder.wire import Bounds, FileRefused
from api.errors import FieldError, InvalidParameters
from api.loras.models import LoraFormat

if TYPE_CHECKING:
    from pathlib import Path

MAX_HEADER_BYTES = 2 * 2**20
"""A LoRA on every layer of SDXL needs 1 MB. The engine reads more, for one caller; here many send them."""

_BOUNDS = Bounds(
    max_pixels=1,
    min_side_px=1,
    keep_side_px=1,
    header_bytes=MAX_HEADER_BYTES,
    cpu_s=10,
    timeout_s=60,
    memory_bytes=1024 * 2**20,
)
"""The longest header needs half a second and 150 MB."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What was found."""

    format: LoraFormat
    rank: int
    """Highest of its layers."""
    mock: bool
    """It says of itself that the mock engine wrote it."""


def inspect(path: Path) -> Inspected:
    """Check that a file is a LoRA as far as its header tells; whether it fits a base is found when it is used.

    Raises:
        InvalidParameters: it is none, for `/file`.
        Unavailable: no process can be started for it.
    """
    try:
        with path.open("rb") as file:
            told = DECODER.read_lora(file, _BOUNDS)
    except FileRefused as error:
        raise InvalidParameters(errors=[FieldError(pointer="/file", detail=error.detail, code=error.code)]) from error
    return Inspected(LoraFormat(told.format), told.rank, mock=told.mock)
