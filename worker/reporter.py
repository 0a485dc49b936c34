"""Keeps the lease of a running stage and tells its progress, from a thread that no training loop can hold up."""

from __future__ import annotations

import contextvars
import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.exc import DBAPIError

from api.db import transaction
from api.errors import LeaseLost
from api.jobs.repository import heartbeat, record_progress
from worker.mailbox import Interrupt, Interruption
from worker.progress import progress_fields

if TYPE_CHECKING:
    from datetime import timedelta
    from types import TracebackType

    from sqlalchemy.orm import Session, sessionmaker

    from api.jobs.repository import ClaimedStage
    from worker.mailbox import Mailbox
    from worker.wire import ProgressReport

log = logging.getLogger(__name__)


class StageReporter:
    """Beats while it is entered; posts an interruption when the job is cancelled or the lease is lost.

    A database that does not answer is no reason to stop: the token fences every write, so at worst the work is thrown
    away, and at best a restart of Postgres costs nothing.
    """

    def __init__(
        self,
        stage: ClaimedStage,
        *,
        run_id: str,
        sessions: sessionmaker[Session],
        mailbox: Mailbox,
        lease: timedelta,
        heartbeat_s: float,
        progress_s: float,
    ) -> None:
        self._stage = stage
        self._run_id = run_id
        self._sessions = sessions
        self._mailbox = mailbox
        self._lease = lease
        self._heartbeat_s = heartbeat_s
        self._progress_s = progress_s
        self._latest: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._interrupted = False
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

    def _beat_on(self) -> None:
        beat_at = monotonic()
        while not self._stop.wait(self._progress_s):
            with self._lock:
                fields, self._latest = self._latest, None
            if fields is None and monotonic() < beat_at + self._heartbeat_s:
                continue
            try:
                self._beat(fields)
            except LeaseLost:
                self._interrupt(Interrupt.LEASE_LOST)
                return
            except DBAPIError as error:
                log.warning("the database did not take a heartbeat", extra={"error": type(error).__name__})
                self._keep(fields)
                continue
            beat_at = monotonic()

    def _beat(self, fields: dict[str, Any] | None) -> None:
        stage = self._stage
        with transaction(self._sessions) as session:
            beat = heartbeat(session, stage_id=stage.stage_id, fencing_token=stage.fencing_token, lease=self._lease)
            if fields is not None:
                record_progress(session, stage_id=stage.stage_id, fencing_token=stage.fencing_token, progress=fields)
        if beat.cancel_requested:
            self._interrupt(Interrupt.CANCEL)

    def _keep(self, fields: dict[str, Any] | None) -> None:
        with self._lock:
            self._latest = self._latest or fields

    def _interrupt(self, reason: Interrupt) -> None:
        if not self._interrupted:
            self._interrupted = True
            self._mailbox.post(Interruption(reason, self._run_id))
