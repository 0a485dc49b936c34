"""Opening a stranger's file of tensors at bounded cost. Safetensors only: a pickle runs code and is never opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from duolora.errors import InvalidLora

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MAX_HEADER_BYTES = 8 * 2**20
"""A LoRA on every layer of SDXL needs 1 MB; trainers add some of statistics. Parsing more would cost memory for
nothing."""

MAX_TENSORS = 20_000
"""A LoRA on every layer of SDXL and both text encoders has 7,000."""

MAX_KEY_LENGTH = 512
"""The longest key of SDXL has 110 characters; keys stand in messages, which should stay readable."""

NUMBER_TYPES = ("F64", "F32", "F16", "BF16")
"""What the factors of a LoRA may be stored as, in the words of safetensors."""

ALPHA_TYPES = (*NUMBER_TYPES, "I64", "I32", "I16", "U8")
"""diffusers' own export to kohya keys writes alphas as integers."""

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""torch.save's zip archive, and pickles of any protocol in use."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file; every number is checked to be finite.

    Raises:
        InvalidLora: the file is no safetensors file, is damaged, has a header or a number of tensors beyond any LoRA's,
            or holds a tensor that is not of floating point or not finite.
    """
    try:
        _check_start(path)
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if len(keys) > MAX_TENSORS:
                raise InvalidLora(f"{path.name} holds {len(keys)} tensors; no LoRA has more than {MAX_TENSORS}")
            metadata = dict(file.metadata() or {})
            tensors = {}
            for key in keys:
                if len(key) > MAX_KEY_LENGTH or not key.isprintable():
                    raise InvalidLora(f"{path.name} has a key that no LoRA has: {key[:60]!r}")
                kind = file.get_slice(key).get_dtype()
                if kind not in (ALPHA_TYPES if key.endswith(".alpha") else NUMBER_TYPES):
                    raise InvalidLora(f"{key} is stored as {kind}; a LoRA's numbers are one of {NUMBER_TYPES}")
                tensors[key] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise InvalidLora(f"{path.name} is not a readable safetensors file: {error}") from error
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidLora(f"{key} holds NaN or infinity: the training diverged or the file is damaged; export anew")
    return tensors, metadata


def _check_start(path: Path) -> None:
    """Look at the first bytes, so that nothing large is parsed and nothing dangerous opened."""
    if path.exists() and not path.is_file():  # a pipe would block for ever
        raise InvalidLora(f"{path.name} is not a readable safetensors file: it is no regular file")
    with path.open("rb") as file:
        start = file.read(9)
    size = path.stat().st_size
    if start[8:] != b"{":
        if start.startswith(_PICKLE_STARTS):
            raise InvalidLora(
                f"{path.name} is a Python pickle, not safetensors. Pickles can run code and are never opened; convert "
                "it to safetensors with the program that made it"
            )
        raise InvalidLora(f"{path.name} is not a readable safetensors file: it does not start with a header")
    length = int.from_bytes(start[:8], "little")
    if length > size - 8:
        raise InvalidLora(f"{path.name} is not a readable safetensors file: it ends inside its header")
    if length > MAX_HEADER_BYTES:
        raise InvalidLora(f"{path.name} has a header of {length} bytes; no LoRA needs more than {MAX_HEADER_BYTES}")
