"""One child process in a session of its own: it dies with this process, and all of its group dies at once."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ChildProcess:
    """Starts `command` with pipes on stdin and stdout; its stderr is ours.

    Start it from a thread that lives as long as the process: Linux ties the parent-death signal to the thread.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # the parent died before the line above
                os._exit(1)

        self._popen = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(env),
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - takes no lock: two system calls
        )

    @property
    def pid(self) -> int:
        """Process id, and the id of its group."""
        return self._popen.pid

    @property
    def stdout(self) -> IO[bytes]:
        """What it writes to its standard output."""
        stream = self._popen.stdout
        assert stream is not None  # noqa: S101 - opened above
        return stream

    def is_alive(self) -> bool:
        """Say whether it runs; a dead one is reaped."""
        return self._popen.poll() is None

    def wait(self, timeout_s: float) -> int | None:
        """Return its exit status, minus the signal for a killed one, None when it still runs after `timeout_s`."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def send(self, line: bytes) -> None:
        """Write one line to its stdin.

        Raises:
            BrokenPipeError: when it no longer reads.
        """
        stream = self._popen.stdin
        assert stream is not None  # noqa: S101 - opened above
        stream.write(line)
        stream.flush()

    def terminate(self, grace_s: float) -> None:
        """End it and everything it started: TERM, up to `grace_s` seconds, KILL. Returns when it is reaped."""
        if self.is_alive():
            self._signal_group(signal.SIGTERM)
            self.wait(grace_s)
        self._signal_group(signal.SIGKILL)
        self._popen.wait()
        self._close(self._popen.stdin)

    def close(self) -> None:
        """Close our ends of the pipes of a dead process."""
        self._close(self._popen.stdin)
        self._close(self._popen.stdout)

    def _signal_group(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            return

    @staticmethod
    def _close(stream: IO[bytes] | None) -> None:
        if stream is None:
            return
        try:
            stream.close()
        except BrokenPipeError:  # unsent bytes for a dead reader
            return
