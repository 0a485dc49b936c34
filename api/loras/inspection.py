"""What a LoRA file that was sent in is, told by its header: no torch is here, and no number is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from api.errors import FieldError, InvalidParameters
from api.loras.models import LoraFormat
from duolora.errors import InvalidLora
from duolora.lora.factors import pair_up
from duolora.lora.foreign import refuse_other_adapters, refuse_other_families
from duolora.lora.header import read_header

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from duolora.lora.header import Header

MAX_HEADER_BYTES = 2 * 2**20
"""A LoRA on every layer of SDXL needs 1 MB. The engine reads more, for one caller; here parsing holds up all others."""

_LOOKS = (
    (LoraFormat.DIFFUSERS, re.compile(r"(unet|text_encoder(_2)?)\..+\.lora_[AB]\.weight")),
    (LoraFormat.KOHYA, re.compile(r"lora_(unet|te[12]?)_.+\.lora_(down|up)\.weight")),
    (
        LoraFormat.PEFT,
        re.compile(r"(base_model\.model\..+|(down|up|input|output)_blocks\..+|(mid|middle)_block\..+)\.lora_[AB]\..+"),
    ),
)
"""How all keys of factors look in a format."""
_ENGINE = "duolora.engine"
"""Where a file's metadata names the engine that wrote it, if that was another one than the engine proper."""


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
    """
    try:
        return _inspect(read_header(path, MAX_HEADER_BYTES))
    except InvalidLora as error:
        raise InvalidParameters(errors=[FieldError(pointer="/file", detail=str(error), code=error.code)]) from error


def _inspect(header: Header) -> Inspected:
    refuse_other_adapters(header.shapes)
    pairs = pair_up(header.shapes)
    refuse_other_families(pairs.downs)
    strangers = sorted(key for key in pairs.others if not key.endswith(".alpha"))
    if strangers:
        raise InvalidLora(f"{len(strangers)} tensors are not part of a LoRA, for example {strangers[0]}")
    if not pairs.downs:
        raise InvalidLora("it holds no LoRA; send the file that the trainer wrote for the LoRA itself")
    ranks = [_rank(header, down, pairs.ups[stem]) for stem, down in pairs.downs.items()]
    form = _format({*pairs.downs.values(), *pairs.ups.values()})
    return Inspected(form, max(ranks), mock=header.metadata.get(_ENGINE) == "mock")


def _rank(header: Header, down: str, up: str) -> int:
    """Return a layer's rank, which both of its factors must have."""
    down_shape, up_shape = header.shapes[down], header.shapes[up]
    if {len(down_shape), len(up_shape)} not in ({2}, {4}) or 0 in (*down_shape, *up_shape):
        raise InvalidLora(f"{down} and {up} have shapes {down_shape} and {up_shape}, which no layer of a LoRA has")
    if down_shape[0] != up_shape[1]:
        raise InvalidLora(f"{down} has rank {down_shape[0]} and {up} has rank {up_shape[1]}; the file is damaged")
    return down_shape[0]


def _format(keys: Collection[str]) -> LoraFormat:
    """Return the format that all keys of factors have."""
    return next((form for form, looks in _LOOKS if all(map(looks.fullmatch, keys))), LoraFormat.OTHER)
