"""Keeps the lease of what runs and tells its progress and log, from a thread that no training loop can hold up."""

from __future__ import annotations

import contextvars
import logging
import threading
from dataclasses import dataclass, field
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

    from api.jobs.repository import ClaimedStage, Heartbeat
    from worker.mailbox import Mailbox
    from worker.settings import WorkerSettings
    from worker.wire import LogLine, ProgressReport

log = logging.getLogger(__name__)

MOST_LINES = 2000
"""Lines of a log that wait for a database that is away; the oldest go first."""


@dataclass
class _JobNews:
    """What is yet to be written of the stages of one job."""

    stages: tuple[ClaimedStage, ...]
    latest: dict[str, Any] | None = None
    lines: list[LogEntry] = field(default_factory=list)
    told_at: float = float("-inf")
    lost: bool = False
    leaves: bool = False
    """Its owner asked for its end, or another has it."""

    @property
    def waits(self) -> bool:
        """Whether there is anything to write."""
        return not self.lost and (self.latest is not None or bool(self.lines))


class StageReporter:
    """Beats while it is entered; posts an interruption when the job is cancelled or stopped, or the lease is lost.

    A database that does not answer is no reason to stop: the token fences every write, so at worst the work is thrown
    away, and at best a restart of Postgres costs nothing. What runs as a pair beats in one transaction, so that both
    leases end in the same moment; each of several jobs beats in its own. If one of several has to leave, the run is
    regrouped.
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
        self._jobs = [_JobNews(stages) for stages in stage.by_job]
        self._run_id = run_id
        self._sessions = sessions
        self._mailbox = mailbox
        self._settings = settings
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
        with self._lock:
            for place, job in enumerate(self._jobs):
                job.latest = progress_fields(report, place)

    def write_line(self, line: LogLine) -> None:
        """Take a line of the log, to be written with the next beat."""
        with self._lock:
            for job in self._jobs:
                job.lines.append(LogEntry(datetime.now(UTC), line.level, line.message))
                del job.lines[:-MOST_LINES]

    def let_go(self, stage: ClaimedStage) -> None:
        """Beat no more for one of several stages: its end is about to be written."""
        with self._beating, self._lock:
            for job in self._jobs:
                job.stages = tuple(other for other in job.stages if other.stage_id != stage.stage_id)
            self._jobs = [job for job in self._jobs if job.stages]

    def flush(self) -> None:
        """Write what there is before the end of the stage is written, if it is still ours and the database is there."""
        with self._beating:  # a beat under way has taken the news and may not have written them yet
            pass
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
            return any(job.waits for job in self._jobs)

    def _beat(self) -> None:
        """Write everything there is, job by job; what could not be written is kept for the next beat.

        Raises:
            LeaseLost: no job is held any more.
            DBAPIError: the database did not take all of it.
        """
        failure: DBAPIError | None = None
        with self._beating:
            for job in self._jobs:
                try:
                    self._beat_for(job)
                except DBAPIError as error:
                    failure = error
                except LeaseLost:
                    job.lost = job.leaves = True
            if self._jobs and all(job.lost for job in self._jobs):
                raise LeaseLost("none of the stages is held any more")
            if len(self._jobs) > 1 and any(job.leaves for job in self._jobs):
                self._interrupt(Interrupt.REGROUP)
        if failure is not None:
            raise failure

    def _beat_for(self, job: _JobNews) -> None:
        """Write everything there is of one job in one transaction."""
        if job.lost:
            return
        with self._lock:
            fields, job.latest = job.latest, None
            lines, job.lines = job.lines, []
        try:
            self._hear(job, self._write(job, fields, lines))
        except DBAPIError:
            with self._lock:
                job.latest = job.latest or fields
                job.lines = (lines + job.lines)[-MOST_LINES:]
            raise

    def _write(self, job: _JobNews, fields: dict[str, Any] | None, lines: list[LogEntry]) -> list[Heartbeat]:
        tells = fields is not None and monotonic() >= job.told_at + self._settings.worker_event_s
        lease = self._settings.lease
        with transaction(self._sessions) as session:
            # Every lock on a stage before the first on the job.
            beats = [heartbeat(session, **stage.proof, lease=lease) for stage in job.stages]
            for stage in job.stages[:1]:
                record_logs(session, **stage.proof, lines=lines)
            for stage in job.stages if fields is not None else ():
                record_progress(session, **stage.proof, progress=fields or {}, tell=tells)
        if tells:
            job.told_at = monotonic()
        return beats

    def _hear(self, job: _JobNews, beats: list[Heartbeat]) -> None:
        """Act on what the owner of a job asked for."""
        canceled = any(beat.cancel_requested for beat in beats)
        stopped = any(beat.stop_requested for beat in beats)
        job.leaves = canceled or stopped
        if len(self._jobs) > 1:
            return
        if canceled:
            self._interrupt(Interrupt.CANCEL)
        elif stopped:
            self._interrupt(Interrupt.FINISH)

    def _interrupt(self, reason: Interrupt) -> None:
        if reason not in self._posted:
            self._posted.add(reason)
            self._mailbox.post(Interruption(reason, self._run_id))
