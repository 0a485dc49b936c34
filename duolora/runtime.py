"""Where the engine computes: device, dtype and threads, chosen once and passed down."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.errors import InvalidConfig, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Runtime:
    """A device and the dtype that the frozen base is held in; adapters stay in float32."""

    device: torch.device
    dtype: torch.dtype

    def generator(self, seed: int) -> torch.Generator:
        """Return a source of random numbers; always on the CPU, so that a seed means the same on every device."""
        return torch.Generator("cpu").manual_seed(seed)


def choose_runtime(device: str = "auto", dtype: str = "auto") -> Runtime:
    """Choose the device and dtype: CUDA with bfloat16 where there is a GPU, else the CPU with float32.

    Raises:
        InvalidConfig: the device is not there or the dtype is unknown.
    """
    name = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise InvalidConfig(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig("device cuda was asked for, but torch sees no GPU; use auto or cpu")
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    fitting = "bfloat16" if chosen.type == "cuda" else "float32"
    if dtype != "auto" and dtype not in dtypes:
        raise InvalidConfig(f"unknown dtype {dtype!r}; use auto, {', '.join(dtypes)}")
    return Runtime(chosen, dtypes[fitting if dtype == "auto" else dtype])


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the device's out-of-memory error into the engine's own."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(f"the GPU ran out of memory: {error}") from error
