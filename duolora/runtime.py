"""Where the engine computes: device, dtype and memory profile, chosen once and passed down."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from duolora.errors import InvalidConfig, OutOfMemory
from duolora.memory import AUTO, UNLIMITED, MemoryProfile, choose_profile, named_profile

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Runtime:
    """A device and the dtype that the frozen base is held in; adapters stay in float32.

    `memory` is how bases loaded from here on use the device's memory; None leaves it to the device and the base.
    """

    device: torch.device
    dtype: torch.dtype
    memory: MemoryProfile | None = None

    def generator(self, seed: int) -> torch.Generator:
        """Return a source of random numbers; always on the CPU, so that a seed means the same on every device."""
        return torch.Generator("cpu").manual_seed(seed)

    def profile_for(self, unet_numbers: int) -> MemoryProfile:
        """Return the memory profile for a base that is about to be placed, by the size of its U-Net."""
        if self.memory is not None:
            return self.memory
        return UNLIMITED if self.device.type != "cuda" else choose_profile(_free_bytes(self.device), unet_numbers)


def choose_runtime(
    device: str = "auto", dtype: str = "auto", memory: str = AUTO, *, memory_source: str = "memory"
) -> Runtime:
    """Choose the device and dtype: CUDA with bfloat16 where there is a GPU, else the CPU with float32.

    Args:
        device: auto, cpu, cuda or cuda:N.
        dtype: auto, or the name of a dtype.
        memory: auto, or the name of a profile (`duolora.memory`); a CPU has no limits unless one is named.
        memory_source: option or variable that `memory` came from, for the error.

    Raises:
        InvalidConfig: the device is not there, or the dtype or the profile is unknown.
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
    return Runtime(chosen, dtypes[fitting if dtype == "auto" else dtype], named_profile(memory, memory_source))


def _free_bytes(device: torch.device) -> int:
    """Return what this process may still take of a GPU: what nobody has, and what torch keeps without using it."""
    kept: int = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + kept


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn the device's out-of-memory error into the engine's own."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise OutOfMemory(f"the GPU ran out of memory: {error}") from error
