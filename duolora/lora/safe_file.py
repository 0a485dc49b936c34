"""Opening a stranger's file of tensors at bounded cost. Safetensors only: a pickle runs code and is never opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from duolora.errors import InvalidLora
from duolora.lora.header import read_header

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file; every number is checked to be finite.

    Raises:
        InvalidLora: the file is none that `read_header` takes, or holds a number that is not finite.
    """
    header = read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in header.shapes}
    except (SafetensorError, OSError) as error:
        raise InvalidLora(f"{path.name} is not a readable safetensors file: {error}") from error
    for key, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidLora(f"{key} holds NaN or infinity: the training diverged or the file is damaged; export anew")
    return tensors, dict(header.metadata)
