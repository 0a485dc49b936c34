"""Child processes that cannot outlive their parent: spawn, wait until ready, stop in reverse order.

Every child gets a session of its own (a terminal's Ctrl-C reaches only the parent, which then stops the children in
order) and, on Linux, a parent-death signal, so that even `kill -9` of the parent leaves nothing behind. The kernel ties
that signal to the thread that spawned: spawn from the main thread only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

LOOPBACK = "127.0.0.1"
POLL_S = 0.02
"""Seconds between two looks at a process that is starting or stopping."""
_PR_SET_PDEATHSIG = 1


class LocalStackError(Exception):
    """The local stack cannot do what was asked; the message is meant for the person at the terminal."""


class ServiceFailed(LocalStackError):
    """A process of the stack ended by itself or never became ready; the message ends with the tail of its log."""


@dataclass(frozen=True)
class Identity:
    """The user a process runs as: a command put in front of its own, or another uid and gid."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None
    gid: int | None = None


@dataclass
class Child:
    """One running process and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    stop_signal: int = signal.SIGTERM
    grace_s: float = 10.0

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def tail(self, lines: int = 20) -> str:
        """Last lines of the log."""
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 16_384))
            text = log.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def failure(self, what: str) -> ServiceFailed:
        """An error that says what happened and shows the end of the log."""
        return ServiceFailed(f"{self.name} {what}. The end of {self.log}:\n{self.tail()}")

    def wait_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Return once `ready()` holds; a child that does not get there is stopped.

        Raises:
            ServiceFailed: the process ended, or was not ready within `timeout_s`.
        """
        try:
            self._await_ready(ready, timeout_s)
        except LocalStackError:
            self.stop()
            raise

    def _await_ready(self, ready: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if not self.alive:
                raise self.failure(f"ended with status {self.process.returncode} while starting")
            if time.monotonic() > deadline:
                raise self.failure(f"was not ready after {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ask, wait for the grace period, then kill the whole session. Returns when the process is gone."""
        if self.alive:
            self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the whole session at once."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def spawn(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
    identity: Identity | None = None,
    death_signal: int = signal.SIGKILL,
    stop_signal: int = signal.SIGTERM,
    grace_s: float = 10.0,
) -> Child:
    """Start `command` with its output in `log` (the log of the run before is kept beside it as `.1`).

    Args:
        name: What to call the process in messages.
        command: Program and arguments.
        log: File that takes standard output and standard error.
        env: The whole environment of the process.
        cwd: Working directory.
        identity: User to run as; None for the caller's.
        death_signal: Sent by the kernel when the calling process dies (Linux).
        stop_signal: Sent by `Child.stop`.
        grace_s: Seconds between that signal and a kill.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("spawn from the main thread: the parent-death signal belongs to the spawning thread")
    identity = identity or Identity()
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*identity.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_die_with_parent(death_signal),  # noqa: PLW1509 - the main thread holds no lock here
            user=identity.uid,
            group=identity.gid,
            extra_groups=[] if identity.uid is not None else None,
        )
    return Child(name, process, log, stop_signal, grace_s)


def stop_all(children: Sequence[Child]) -> None:
    """Stop in reverse order of starting, each gone before the next is asked."""
    for child in reversed(children):
        child.stop()


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP (unless ignored) raise KeyboardInterrupt: one way of leaving serves all."""

    def interrupt(number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup duolora up &` must outlive its terminal
        heard.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port(host: str = LOOPBACK) -> int:
    """A TCP port of one of this machine's addresses that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def accepts(port: int, host: str = LOOPBACK) -> bool:
    """Whether something listens on a port."""
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _die_with_parent(death_signal: int) -> Callable[[], None] | None:
    """What the child does between fork and exec; None where the system has no parent-death signal."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:  # the parent died before the request was in place
            os._exit(1)

    return prepare
