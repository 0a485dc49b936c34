"""The engine process's ends of the two pipes."""

from __future__ import annotations

import os
import sys
import threading
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING

from worker.wire import Cancel, Finish, Pause, ProgressReport, parse_command

if TYPE_CHECKING:
    from duolora.events import Progress
    from worker.wire import Event, Run, Warm

REPORT_EVERY_S = 0.05
"""Least time between two progress lines of a run; a fast loop must not spend itself on writing."""


class Channel:
    """Writes events to the original stdout, reads commands from stdin in a thread of its own."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "wb", buffering=0)
        os.dup2(2, 1)  # whatever a library prints goes to the log, not between the events
        self._write_lock = threading.Lock()
        self._commands: SimpleQueue[Run | Warm | None] = SimpleQueue()
        self._terminating = False
        self._cancelled: set[str] = set()
        self._paused: set[str] = set()
        self._finishing: set[str] = set()

    def start(self) -> None:
        """Begin to read commands."""
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def send(self, event: Event) -> None:
        """Write one event."""
        with self._write_lock:
            self._out.write(event.line())

    def next_command(self) -> Run | Warm | None:
        """Wait for the next thing to do; None when the process is to end."""
        command = self._commands.get()
        return None if self._terminating else command

    def terminate(self) -> None:
        """Let the process end as soon as it can, a run in it paused first; safe in a signal handler."""
        self._terminating = True
        self._commands.put(None)

    def is_cancelled(self, run_id: str) -> bool:
        """Say whether the parent wants that run to stop, whatever becomes of its work."""
        return run_id in self._cancelled

    def is_paused(self, run_id: str) -> bool:
        """Say whether the parent wants that run to stop, its work kept in a checkpoint."""
        return self._terminating or run_id in self._paused

    def is_finishing(self, run_id: str) -> bool:
        """Say whether the parent wants that run to end with what it has."""
        return run_id in self._finishing

    def _read(self) -> None:
        status = 1  # for a line that is no command: the two sides do not fit together
        try:
            for line in sys.stdin.buffer:
                command = parse_command(line)
                match command:
                    case Cancel(id=run_id):
                        self._cancelled.add(run_id)
                    case Pause(id=run_id):
                        self._paused.add(run_id)
                    case Finish(id=run_id):
                        self._finishing.add(run_id)
                    case _:
                        self._commands.put(command)
            status = 0  # the parent closed the pipe or died: nobody is left to work for
        finally:
            os._exit(status)


class PipeObserver:
    """The observer of one run (duolora.events.Observer): reports go up the pipe, a cancel came down it."""

    def __init__(self, channel: Channel, run_id: str) -> None:
        self._channel = channel
        self._run_id = run_id
        self._reported_at = float("-inf")
        self._note: str | None = None

    def on_progress(self, progress: Progress) -> None:
        """Send a report, unless one went just before; the last step and a new note always go."""
        now = monotonic()
        telling = progress.step >= progress.total or progress.note != self._note
        if not telling and now - self._reported_at < REPORT_EVERY_S:
            return
        self._reported_at, self._note = now, progress.note
        self._channel.send(
            ProgressReport(
                id=self._run_id,
                step=progress.step,
                total=progress.total,
                loss=progress.loss,
                note=progress.note,
                losses=progress.losses if len(progress.losses) > 1 else (),
            )
        )

    def should_stop(self) -> bool:
        """Say whether the parent asked to stop."""
        return self._channel.is_cancelled(self._run_id) or self._channel.is_paused(self._run_id)
