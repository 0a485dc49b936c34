"""What memory the engine process holds, and what is left of its device. Torch is asked only where it is loaded."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


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


class PeakMemory:
    """The most memory that this process takes from now on: of the GPU where it uses one, else of the host."""

    def __init__(self) -> None:
        self._of_host = _forget_host_peak()
        for index in _gpus():
            sys.modules["torch"].cuda.reset_peak_memory_stats(index)

    def peak_bytes(self) -> int | None:
        """Return it, None where the system does not say."""
        gpus = _gpus()
        if gpus:
            return sum(int(sys.modules["torch"].cuda.max_memory_allocated(index)) for index in gpus)
        if not self._of_host:
            return None
        line = next((line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
        return None if line is None else int(line.split()[1]) * 1024


def _gpus() -> range:
    torch = sys.modules.get("torch")
    return range(torch.cuda.device_count()) if torch is not None and torch.cuda.is_initialized() else range(0)


def _forget_host_peak() -> bool:
    """Let the kernel count the peak of resident memory from now on (proc(5), clear_refs); False if it does not."""
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return _STATUS.exists()


def free_bytes(device: str) -> int | None:
    """Return the memory of a GPU that nobody uses, None for a device that does not say."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return None
    free: int = torch.cuda.mem_get_info(torch.device(device))[0]
    return free
