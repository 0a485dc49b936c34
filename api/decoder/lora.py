"""What a LoRA file that was sent in is, told by its header: no torch is here, and no number is read. In a decoder only.

Parsing a header of a few megabytes, made for it, takes half a second in which no other thread of its process runs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, BinaryIO

from api.decoder.wire import Told
from duolora.errors import InvalidLora
from duolora.lora.factors import pair_up
from duolora.lora.foreign import refuse_other_adapters, refuse_other_families
from duolora.lora.header import read_open_header

if TYPE_CHECKING:
    from collections.abc import Collection

    from duolora.lora.header import Header

NAME = "lora.safetensors"
OTHER = "other"
_LOOKS = (
    ("diffusers", re.compile(r"(unet|text_encoder(_2)?)\..+\.lora_[AB]\.weight")),
    ("kohya", re.compile(r"lora_(unet|te[12]?)_.+\.lora_(down|up)\.weight")),
    (
        "peft",
        re.compile(r"(base_model\.model\..+|(down|up|input|output)_blocks\..+|(mid|middle)_block\..+)\.lora_[AB]\..+"),
    ),
)
"""How all keys of factors look in a format."""
_ENGINE = "duolora.engine"
"""Where a file's metadata names the engine that wrote it, if that was another one than the engine proper."""


def read_lora(source: BinaryIO, most_bytes: int) -> Told:
    """Check that a file is a LoRA as far as its header tells; whether it fits a base is found when it is used.

    Args:
        source: the file.
        most_bytes: of its header.

    Raises:
        InvalidLora: it is none.
    """
    return _inspect(read_open_header(source, NAME, most_bytes))


def _inspect(header: Header) -> Told:
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
    return Told(form, max(ranks), mock=header.metadata.get(_ENGINE) == "mock")


def _rank(header: Header, down: str, up: str) -> int:
    """Return a layer's rank, which both of its factors must have."""
    down_shape, up_shape = header.shapes[down], header.shapes[up]
    if {len(down_shape), len(up_shape)} not in ({2}, {4}) or 0 in (*down_shape, *up_shape):
        raise InvalidLora(f"{down} and {up} have shapes {down_shape} and {up_shape}, which no layer of a LoRA has")
    if down_shape[0] != up_shape[1]:
        raise InvalidLora(f"{down} has rank {down_shape[0]} and {up} has rank {up_shape[1]}; the file is damaged")
    return down_shape[0]


def _format(keys: Collection[str]) -> str:
    """Return the format that all keys of factors have."""
    return next((form for form, looks in _LOOKS if all(map(looks.fullmatch, keys))), OTHER)
