"""Deletes what retention has ended: objects first, rows after them, each act in a transaction of its own.

Only rows of the library go before the objects of the job that they stand on: nobody may be shown what is half gone.

Every act may be done twice or be broken off anywhere: a row whose objects are gone is found again, and deleting an
object that is not there is no error. No transaction is open while the store is talked to.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from api.db import transaction
from api.jobs import repository
from api.jobs.retention import drop_expired_keys
from api.loras.disposal import settle
from api.loras.repository import withdraw_made
from api.storage import StoreError, job_prefix, received_key, upload_prefix
from api.uploads import repository as uploads
from api.webhooks.repository import purge_log
from api.webhooks.sealing import seal_again
from worker.dispatcher.duty import ServerAway

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    import psycopg
    from sqlalchemy.orm import Session, sessionmaker

    from api.storage import ObjectStore
    from worker.settings import DispatcherSettings

log = logging.getLogger(__name__)

BATCH = 50
"""Jobs, checkpoints, LoRAs and uploads in one round: so many calls to the store, and no more."""
ROWS = 1_000
"""Rows of logs in one round."""
PROGRESS_KEPT = timedelta(days=1)
"""How long reports of progress outlive the end of their job."""
WORKERS_KEPT = timedelta(days=1)


class Janitor:
    """A round deletes a bounded number of things, then waits; with more to do it waits less."""

    def __init__(
        self,
        settings: DispatcherSettings,
        *,
        sessions: sessionmaker[Session],
        store: ObjectStore,
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._stop = stop

    def __call__(self, _connection: psycopg.Connection) -> None:
        """Delete what is due.

        Raises:
            ServerAway: the store does not answer; the rows are there for the next round.
        """
        try:
            full = self.tidy()
        except StoreError as error:
            raise ServerAway(f"the object store does not answer: {error}") from error
        self._stop.wait(self._settings.dispatcher_janitor_s / (10 if full else 1))

    def tidy(self) -> bool:
        """Do one round; True if there may be more to do."""
        self._drop_rows()
        sealed = self._seal_again()
        settled = settle(self._sessions, self._store, limit=BATCH)
        uploaded = (self._purge_uploads(), self._purge_links())
        done = (self._purge_jobs(), self._purge_checkpoints(), settled, *uploaded)
        if sealed:
            log.info("sealed anew with the newest of SECRET_KEYS", extra={"secrets": sealed})
        if any(done):
            counts = zip(("jobs", "checkpoints", "loras", "uploads", "links"), done, strict=True)
            log.info("purged", extra=dict(counts))
        return max(done) == BATCH or sealed >= ROWS

    def _seal_again(self) -> int:
        with transaction(self._sessions) as session:
            return seal_again(session, limit=ROWS)

    def _purge_jobs(self) -> int:
        before = datetime.now(UTC) - timedelta(days=self._settings.dispatcher_retention_days)
        with transaction(self._sessions) as session:
            jobs = repository.overdue_jobs(session, finished_before=before, limit=BATCH)
        for job in jobs:
            with transaction(self._sessions) as session:
                withdraw_made(session, job.job_id)
            self._store.delete(self._store.keys(job_prefix(job.account_id, job.job_id)))
            with transaction(self._sessions) as session:
                repository.purge_job(session, job.job_id)
        return len(jobs)

    def _purge_checkpoints(self) -> int:
        before = datetime.now(UTC) - timedelta(hours=self._settings.dispatcher_checkpoint_keep_h)
        with transaction(self._sessions) as session:
            stale = repository.stale_checkpoints(session, finished_before=before, limit=BATCH)
        for found in stale:
            keys = self._store.keys(job_prefix(found.account_id, found.job_id))
            self._store.delete([key for key in keys if "/checkpoints/" in key])
            with transaction(self._sessions) as session:
                repository.forget_checkpoint(session, found.stage_id)
        return len(stale)

    def _purge_uploads(self) -> int:
        with transaction(self._sessions) as session:
            over = uploads.overdue(session, limit=BATCH)
        for upload in over:
            self._store.delete(self._store.keys(upload_prefix(upload.account_id, upload.upload_id)))
            with transaction(self._sessions) as session:
                uploads.purge(session, upload.upload_id)
        return len(over)

    def _purge_links(self) -> int:
        with transaction(self._sessions) as session:
            ended = uploads.ended_links(session, limit=BATCH)
        for upload in ended:
            self._store.delete([received_key(upload.account_id, upload.upload_id)])
            with transaction(self._sessions) as session:
                uploads.forget_link(session, upload.upload_id)
        return len(ended)

    def _drop_rows(self) -> None:
        """Delete rows that no object belongs to."""
        acts: tuple[Callable[[Session], int], ...] = (
            lambda session: drop_expired_keys(session, limit=ROWS),
            lambda session: repository.forget_workers(session, silent_for=WORKERS_KEPT),
            lambda session: repository.trim_events(session, older_than=PROGRESS_KEPT, limit=ROWS),
            lambda session: purge_log(
                session, older_than=timedelta(days=self._settings.dispatcher_log_days), limit=ROWS
            ),
        )
        for act in acts:
            with transaction(self._sessions) as session:
                act(session)
