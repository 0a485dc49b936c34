"""The header of a stranger's safetensors file: which tensors it says it holds. Read at bounded cost, without torch."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeGuard

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_HEADER_BYTES = 8 * 2**20
"""A LoRA on every layer of SDXL needs 1 MB; trainers add some of statistics. Parsing more would cost memory for
nothing."""

MAX_TENSORS = 20_000
"""A LoRA on every layer of SDXL and both text encoders has 7,000."""

MAX_KEY_LENGTH = 512
"""The longest key of SDXL has 110 characters; keys stand in messages, which should stay readable."""

MAX_DIMENSIONS = 8
"""A LoRA's tensors have four at most."""

_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "U8": 1}
"""Bytes of one number, by its type in the words of safetensors."""

NUMBER_TYPES = ("F64", "F32", "F16", "BF16")
"""What the factors of a LoRA may be stored as."""

ALPHA_TYPES = (*NUMBER_TYPES, "I64", "I32", "I16", "U8")
"""diffusers' own export to kohya keys writes alphas as integers."""

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""torch.save's zip archive, and pickles of any protocol in use."""
_METADATA = "__metadata__"


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of each tensor, by its key."""
    metadata: Mapping[str, str]


def read_header(path: Path, most_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Read the header of a safetensors file, as `read_open_header` does."""
    if path.exists() and not path.is_file():  # a pipe would block for ever
        raise _unreadable(path.name, "it is no regular file")
    try:
        with path.open("rb") as file:
            return read_open_header(file, path.name, most_bytes)
    except OSError as error:
        raise _unreadable(path.name, str(error)) from error


def read_open_header(file: BinaryIO, name: str, most_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Read the header of a safetensors file and hold it against the format's rules and against what a LoRA can be.

    The rules: https://github.com/huggingface/safetensors, "Format". Tensors fill the rest of the file without overlaps
    and holes.

    Args:
        file: the file, a regular one.
        name: what to call it.
        most_bytes: of the header. A larger one is not parsed: what is parsed may take twenty times as much memory, and
            no other thread runs meanwhile.

    Raises:
        InvalidLora: the file is no safetensors file, is damaged, has a header or a number of tensors beyond any LoRA's,
            or holds a tensor that is not of floating point.
    """
    try:
        length, size = _look_at_start(file, name, most_bytes)
        file.seek(8)
        words = file.read(length).decode()
        entries = json.loads(words, object_pairs_hook=_without_doubles)
        return _checked(entries, name, size - 8 - length)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(name, str(error) or type(error).__name__) from error


def _look_at_start(file: BinaryIO, name: str, most_bytes: int) -> tuple[int, int]:
    """Look at the first bytes, so that nothing large is parsed; returns the lengths of the header and of the file."""
    file.seek(0)
    start = file.read(9)
    size = os.fstat(file.fileno()).st_size
    if start[8:] != b"{":
        if start.startswith(_PICKLE_STARTS):
            raise InvalidLora(
                f"{name} is a Python pickle, not safetensors. Pickles can run code and are never opened; convert "
                "it to safetensors with the program that made it"
            )
        raise _unreadable(name, "it does not start with a header")
    length = int.from_bytes(start[:8], "little")
    if length > size - 8:
        raise _unreadable(name, "it ends inside its header")
    if length > most_bytes:
        raise InvalidLora(
            f"{name} has a header of {length} bytes; no LoRA needs more than {most_bytes}: save it without the "
            "statistics of its training"
        )
    return length, size


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs; one key twice would let two readers see two files."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header names one key twice")
    return found


def _checked(entries: dict[str, Any], name: str, body_bytes: int) -> Header:
    metadata = entries.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _unreadable(name, "its metadata is not text")
    if len(entries) > MAX_TENSORS:
        raise InvalidLora(f"{name} holds {len(entries)} tensors; no LoRA has more than {MAX_TENSORS}")
    shapes: dict[str, tuple[int, ...]] = {}
    spans: list[tuple[int, int]] = []
    for key, entry in entries.items():
        if len(key) > MAX_KEY_LENGTH or not key.isprintable():
            raise InvalidLora(f"{name} has a key that no LoRA has: {key[:60]!r}")
        shapes[key], span = _tensor(name, key, entry)
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _unreadable(name, "its tensors overlap or leave holes")
        end = stop
    if end != body_bytes:
        raise _unreadable(name, f"its tensors have {end} bytes, and {body_bytes} are there")
    return Header(shapes, metadata)


def _tensor(name: str, key: str, entry: Any) -> tuple[tuple[int, ...], tuple[int, int]]:  # noqa: ANN401 - a stranger's
    """Return a tensor's shape and where it begins and ends."""
    if not isinstance(entry, dict):
        raise _unreadable(name, f"{key} has no description")
    kind, shape, span = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not _is_type(kind) or not _are_counts(shape, MAX_DIMENSIONS) or not _are_counts(span, 2):
        raise _unreadable(name, f"{key} is not described as the format wants it")
    if kind not in (ALPHA_TYPES if key.endswith(".alpha") else NUMBER_TYPES):
        raise InvalidLora(f"{name}: {key} is stored as {kind}; a LoRA's numbers are one of {NUMBER_TYPES}")
    if len(span) != 2 or span[1] - span[0] != math.prod(shape) * _WIDTHS[kind]:
        raise _unreadable(name, f"{key} has another size than its shape")
    return tuple(shape), (span[0], span[1])


def _is_type(value: Any) -> TypeGuard[str]:  # noqa: ANN401 - a stranger's
    """Tell whether something could be the name of a type of numbers."""
    return isinstance(value, str) and re.fullmatch(r"[A-Z0-9_]{1,20}", value) is not None


def _are_counts(value: Any, most: int) -> TypeGuard[list[int]]:  # noqa: ANN401 - a stranger's
    """Tell whether something is a short list of whole numbers, none below 0."""
    return isinstance(value, list) and len(value) <= most and all(type(each) is int and each >= 0 for each in value)


def _unreadable(name: str, why: str) -> InvalidLora:
    return InvalidLora(f"{name} is not a readable safetensors file: {why}")
