"""Log lines of the engine that the job's owner may read, sent up the pipe while a run is under way."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

from worker.wire import LogLine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.engine.channel import Channel

LOGGERS = ("duolora", "worker.engine")
"""Whose lines the owner gets. Other libraries' may speak of the machine, and tracebacks of anything: none of them."""

MAX_LENGTH = 2_000
MAX_PER_S = 20


class PipeLines(logging.Handler):
    """Sends lines of level INFO and above; more than `MAX_PER_S` in a second are counted, not sent."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(logging.INFO)
        self._channel = channel
        self._run_id: str | None = None
        self._second = float("-inf")
        self._sent = 0
        self._dropped = 0

    def install(self) -> None:
        """Listen to the engine's loggers, at INFO whatever the process logs elsewhere."""
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.addHandler(self)
            if logger.getEffectiveLevel() > logging.INFO:
                logger.setLevel(logging.INFO)

    @contextmanager
    def bound(self, run_id: str) -> Iterator[None]:
        """Send lines as those of a run."""
        self._run_id = run_id
        try:
            yield
        finally:
            self._tell_of_dropped()
            self._run_id = None

    def emit(self, record: logging.LogRecord) -> None:
        """Send the message of a record, without its traceback."""
        if self._run_id is None:
            return
        now = monotonic()
        if now - self._second >= 1:
            self._tell_of_dropped()
            self._second, self._sent = now, 0
        self._sent += 1
        if self._sent > MAX_PER_S:
            self._dropped += 1
            return
        try:
            message = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit; the process's own log says so
            return
        self._send(record.levelname.lower(), message)

    def _tell_of_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        if dropped:
            self._send("warning", f"{dropped} lines were left out")

    def _send(self, level: str, message: str) -> None:
        if self._run_id is not None:
            self._channel.send(LogLine(id=self._run_id, level=level, message=message[:MAX_LENGTH]))
