"""Keeps the lease of what runs and tells its progress and log, from a thread that no training loop can hold up."""

from __future__ import annotations

import contextvars
import logging
import threading
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.errors import LeaseLost
from api.jobs.repository import LogEntry, heartbeat, record_logs, record_progress
from worker.mailbox import Interrupt, Interruption
from worker.progress import progress_fields

if TYPE_CHECKING:
    from types import TracebackType

    from sqlalchemy.orm import Session, sessionmaker

    from api.jobs.repository import ClaimedStage
    from worker.mailbox import Mailbox
    from worker.settings import WorkerSettings
    from worker.wire import LogLine, ProgressReport

log = logging.getLogger(__name__)

MOST_LINES = 2000
"""Lines of a log that wait for a database that is away; the oldest go first."""


class StageReporter:
    """Beats while it is entered; posts an interruption when the job is cancelled or stopped, or the lease is lost.

    A database that does not answer is no reason to stop: the token fences every write, so at worst the work is thrown
    away, and at best a restart of Postgres costs nothing. What runs as a pair beats in one transaction, so that both
    leases end in the same moment.
    """

    def __init__(
        self,
        stage: ClaimedStage,
        *,
        run_id: str,
        sessions: sessionmaker[Session],
        mailbox: Mailbox,
        settings: WorkerSettings,
    ) -> None:
        self._stages = stage.all
        self._run_id = run_id
        self._sessions = sessions
        self._mailbox = mailbox
        self._settings = settings
        self._latest: dict[str, Any] | None = None
        self._lines: list[LogEntry] = []
        self._told_at = float("-inf")
        self._lock = threading.Lock()
        self._beating = threading.Lock()
        self._stop = threading.Event()
        self._posted: set[Interrupt] = set()
        context = contextvars.copy_context()  # so that its log lines name the stage
        self._thread = threading.Thread(target=context.run, args=(self._beat_on,), name="reporter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def report(self, report: ProgressReport) -> None:
        """Take a report of the engine; the newest one is written with the next beat."""
        fields = progress_fields(report)
        with self._lock:
            self._latest = fields

    def write_line(self, line: LogLine) -> None:
        """Take a line of the log, to be written with the next beat."""
        with self._lock:
            self._lines.append(LogEntry(datetime.now(UTC), line.level, line.message))
            del self._lines[:-MOST_LINES]

    def let_go(self, stage: ClaimedStage) -> None:
        """Beat no more for one of two stages: its end is about to be written."""
        with self._beating:
            self._stages = tuple(other for other in self._stages if other.stage_id != stage.stage_id)

    def flush(self) -> None:
        """Write what there is before the end of the stage is written, if it is still ours and the database is there."""
        if not self._has_news():
            return
        try:
            self._beat()
        except (LeaseLost, DBAPIError) as error:
            log.info("the last report was not written", extra={"error": type(error).__name__})

    def _beat_on(self) -> None:
        beat_at = monotonic()
        while not self._stop.wait(self._settings.worker_progress_s):
            if not self._has_news() and monotonic() < beat_at + self._settings.worker_heartbeat_s:
                continue
            try:
                self._beat()
            except LeaseLost:
                self._interrupt(Interrupt.LEASE_LOST)
                return
            except DBAPIError as error:
                log.warning("the database did not take a heartbeat", extra={"error": type(error).__name__})
                continue
            beat_at = monotonic()

    def _has_news(self) -> bool:
        with self._lock:
            return self._latest is not None or bool(self._lines)

    def _beat(self) -> None:
        """Write everything there is in one transaction; what a failed one held is kept for the next."""
        with self._lock:
            fields, self._latest = self._latest, None
            lines, self._lines = self._lines, []
        try:
            with self._beating:
                self._write(fields, lines)
        except DBAPIError:
            with self._lock:
                self._latest = self._latest or fields
                self._lines = (lines + self._lines)[-MOST_LINES:]
            raise

    def _write(self, fields: dict[str, Any] | None, lines: list[LogEntry]) -> None:
        tells = fields is not None and monotonic() >= self._told_at + self._settings.worker_event_s
        lease = self._settings.lease
        with transaction(self._sessions) as session:
            # Every lock on a stage before the first on the job.
            beats = [heartbeat(session, **stage.proof, lease=lease) for stage in self._stages]
            for stage in self._stages[:1]:
                record_logs(session, **stage.proof, lines=lines)
            for stage in self._stages if fields is not None else ():
                record_progress(session, **stage.proof, progress=fields or {}, tell=tells)
        if tells:
            self._told_at = monotonic()
        if any(beat.cancel_requested for beat in beats):
            self._interrupt(Interrupt.CANCEL)
        elif any(beat.stop_requested for beat in beats):
            self._interrupt(Interrupt.FINISH)

    def _interrupt(self, reason: Interrupt) -> None:
        if reason not in self._posted:
            self._posted.add(reason)
            self._mailbox.post(Interruption(reason, self._run_id))
