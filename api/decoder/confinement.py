"""What a decoder gives up before it sees a stranger's byte, and what is hidden from it, by the kernel. Linux."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from api.decoder.seccomp import keep_to_itself
from api.decoder.wire import BYTES_PER_PIXEL

if TYPE_CHECKING:
    from api.decoder.wire import Bounds

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_LIBC = ctypes.CDLL(None, use_errno=True)
_NOBODY = 65534


def confine(bounds: Bounds) -> None:
    """Limit this process for the rest of its life.

    It may compute for so long, take so much memory and write so much. It can open nothing any more: no file and no
    socket, so there is no network; what is open stays so. It starts no other process, signals none, gains no privilege,
    and dies with its parent.
    """
    _give_up_root()
    hide_memory()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for limit, most in (
        (resource.RLIMIT_CPU, bounds.cpu_s),
        (resource.RLIMIT_AS, bounds.memory_bytes),
        (resource.RLIMIT_FSIZE, bounds.max_pixels * BYTES_PER_PIXEL),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        _lower(limit, most)
    keep_to_itself()


def hide_memory() -> None:
    """Keep every other process of the same user from reading and tracing this one. No core of it is dumped either.

    What is forked is hidden too; a program that is executed has to hide itself. Root sees everything still. See
    ptrace(2), "Ptrace access mode checking".
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def _give_up_root() -> None:
    """Become nobody, because root may raise its limits again. A container may have no such user; then it stays."""
    if os.geteuid() == 0:
        with suppress(OSError):
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def _lower(limit: int, most: int) -> None:
    """Set a limit, unless it is lower already."""
    hard = resource.getrlimit(limit)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(limit, (value, value))
