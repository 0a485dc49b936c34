"""What memory the engine process holds, and what is left of its device. Torch is asked only where it is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def held_bytes() -> int | None:
    """Return what this process holds after giving back what it can: of the GPU where it uses one, else of the host."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        return sum(int(torch.cuda.memory_allocated(index)) for index in range(torch.cuda.device_count()))
    with contextlib.suppress(AttributeError):  # another libc
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory otherwise, and it would look like a leak
    if not _STATM.exists():
        return None
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_bytes(device: str) -> int | None:
    """Return the memory of a GPU that nobody uses, None for a device that does not say."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    free: int = torch.cuda.mem_get_info(torch.device(device))[0]
    return free
