"""A filter of system calls (seccomp(2)): what would reach other processes of the same user is refused by the kernel.

Limits and hidden memory keep a decoder from opening and reading; without this it could still signal the API, have the
kernel signal it (F_SETOWN), or take its processor time and files away (sched_setaffinity, prlimit). A filter needs no
privilege and, other than a namespace, is allowed in containers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from functools import cache

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
_LIBC = ctypes.CDLL(None, use_errno=True)

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions of linux/bpf_common.h: a word of the call's data, jumps by it, the end."""
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
"""Where struct seccomp_data of linux/seccomp.h has them; an argument has 8 bytes, the low half first."""
_ALLOW = 0x7FFF0000
_REFUSE = 0x00050000 | errno.EPERM
_OTHER_ABI = 0x40000000
"""From here on calls have x32's numbers, by which each could be made once more."""
_OWNERS = {"fcntl": (8, 10, 15), "ioctl": (0x8901, 0x8902)}
"""F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP: whom the kernel signals for a descriptor, and by what."""


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of an architecture: of linux/audit.h, and of its calls."""

    audit: int
    refused: tuple[int, ...]
    """kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo, setpriority, sched_setparam, sched_setscheduler,
    sched_setaffinity, sched_setattr, ioprio_set, migrate_pages, move_pages, kcmp, ptrace, process_vm_readv,
    process_vm_writev."""
    fcntl: int
    ioctl: int
    prlimit: int


_EVERYWHERE = (424, 434, 438, 440, 448)
"""pidfd_send_signal, pidfd_open, pidfd_getfd, process_madvise, process_mrelease."""
_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        refused=(62, 200, 234, 129, 297, 141, 142, 144, 203, 314, 251, 256, 279, 312, 101, 310, 311),
        fcntl=72,
        ioctl=16,
        prlimit=302,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        refused=(129, 130, 131, 138, 240, 140, 118, 119, 122, 274, 30, 238, 239, 272, 117, 270, 271),
        fcntl=25,
        ioctl=29,
        prlimit=261,
    ),
}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


@cache
def obstacle() -> str | None:
    """Return why this kernel or machine has no such filter, None if it has."""
    if os.uname().machine not in _MACHINES:
        return f"the numbers of system calls of {os.uname().machine} are not known here"
    _LIBC.prctl(_PR_SET_SECCOMP, _MODE_FILTER, 0, 0, 0)  # refused for want of a program, where there are filters
    reason = ctypes.get_errno()
    return None if reason == errno.EFAULT else f"the kernel has no filters of system calls: {os.strerror(reason)}"


def get_ready() -> None:
    """Make what every process forked from this one is going to need."""
    if obstacle() is None:
        _program(_MACHINES[os.uname().machine])


def keep_to_itself() -> None:
    """Refuse this process, and what it starts, every call that concerns another process, for good.

    PR_SET_NO_NEW_PRIVS must be set. Without filters (`obstacle`) nothing happens.

    Raises:
        OSError: the kernel does not take the filter.
    """
    if obstacle() is not None:
        return
    code = _program(_MACHINES[os.uname().machine])
    program = _Program(len(code) // 8, code)
    if _LIBC.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "the filter of system calls was refused")


@cache
def _program(machine: _Machine) -> bytes:
    """Return the filter as classic BPF, 8 bytes an instruction; made once, before the first fork."""
    calls = (*machine.refused, *_EVERYWHERE)
    lines = [_step(_LOAD, _ARCHITECTURE_AT), _step(_EQUAL, machine.audit, 1, 0), _step(_RETURN, _REFUSE)]
    lines += [_step(_LOAD, _NUMBER_AT), _step(_AT_LEAST, _OTHER_ABI, 0, 1), _step(_RETURN, _REFUSE)]
    for call in calls:
        lines += [_step(_EQUAL, call, 0, 1), _step(_RETURN, _REFUSE)]
    for call, commands in ((machine.fcntl, _OWNERS["fcntl"]), (machine.ioctl, _OWNERS["ioctl"])):
        asked = [_step(_LOAD, _ARGUMENTS_AT + 8)]
        for command in commands:
            asked += [_step(_EQUAL, command, 0, 1), _step(_RETURN, _REFUSE)]
        asked.append(_step(_RETURN, _ALLOW))
        lines += [_step(_EQUAL, call, 0, len(asked)), *asked]
    own = [_step(_LOAD, _ARGUMENTS_AT), _step(_EQUAL, 0, 1, 0), _step(_RETURN, _REFUSE), _step(_RETURN, _ALLOW)]
    lines += [_step(_EQUAL, machine.prlimit, 0, len(own)), *own, _step(_RETURN, _ALLOW)]
    return b"".join(lines)


def _step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
    """Return an instruction: what, with which value, and how many to skip then or otherwise."""
    return struct.pack("=HBBI", code, then, otherwise, value)
