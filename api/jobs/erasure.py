"""Deleting jobs: what is erased, what remains to tell of it, and the acts on request. One piece serves the janitor too.

What the library has of a job goes before anything else: no row of it may point to bytes that are gone. Then objects go
first, rows after them, and the receipt is written with the deletion of the rows. What is broken off in between is found
by `overdue_jobs` and finished by the janitor.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import text

from api.db import transaction
from api.errors import Conflict, NotFound
from api.jobs import listing, retention
from api.jobs.locking import LockedJob, lock_job
from api.jobs.models import DeletedJob, Job
from api.jobs.schemas import DeletionRead, Erased
from api.loras.making import withdraw_made
from api.object_keys import job_prefix
from api.storage import StoreError

if TYPE_CHECKING:
    import uuid

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.storage import ObjectStore

logger = logging.getLogger(__name__)

_TRIES_IT_AGAIN = text(
    """
    WITH RECURSIVE retries AS (
        SELECT first.id, first.finished_at FROM jobs first WHERE first.retry_of = :job_id
        UNION ALL
        SELECT next.id, next.finished_at FROM jobs next JOIN retries ON next.retry_of = retries.id)
    SELECT id FROM retries WHERE finished_at IS NULL LIMIT 1
    """
)


class Eraser:
    """Deletes jobs for their owners."""

    def __init__(self, sessions: sessionmaker[Session], store: ObjectStore) -> None:
        self._sessions = sessions
        self._store = store

    def delete(self, caller: Caller, job_id: uuid.UUID) -> DeletionRead:
        """Delete an ended job with everything it has; returns the receipt, again and again the same.

        From now on the job is gone for its owner. If the store does not answer, the janitor does the rest later.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
            Conflict: it has not ended, or a job that has not ended goes on from its checkpoints.
        """
        with transaction(self._sessions) as session:
            receipt = _request(session, caller.account_id, job_id)
        if receipt.deleted_at is not None:
            return receipt
        try:
            self._store.delete(self._store.keys(job_prefix(caller.account_id, job_id)))
        except StoreError as error:
            logger.warning("job %s is deleted later, as the object store does not answer: %s", job_id, error)
            return receipt
        with transaction(self._sessions) as session:
            retention.purge_job(session, job_id)
            return _receipt(session.get_one(DeletedJob, job_id))


def _request(session: Session, account_id: uuid.UUID, job_id: uuid.UUID) -> DeletionRead:
    """Hide a job from its owner for good, and return what there is to erase; or the receipt, if that was done."""
    locked = _lock(session, account_id, job_id)
    if locked is None:
        gone = session.get(DeletedJob, job_id)
        if gone is None or gone.account_id != account_id:
            raise NotFound(f"There is no job {job_id}.")
        return _receipt(gone)
    job = locked.job
    if job.deletion_requested_at is None:
        _check(session, job)
        job.deletion_requested_at = locked.now
        withdraw_made(session, job_id)
    return DeletionRead(
        id=job_id,
        state="deleting",
        cause="request",
        requested_at=job.deletion_requested_at,
        deleted_at=None,
        erased=retention.inventory(session, job),
    )


def _lock(session: Session, account_id: uuid.UUID, job_id: uuid.UUID) -> LockedJob | None:
    """Lock an account's job; None if there is none, or none any more once the locks are had."""
    if not listing.is_owned(session, account_id=account_id, job_id=job_id):
        return None
    with suppress(NotFound):
        return lock_job(session, job_id)
    return None


def _check(session: Session, job: Job) -> None:
    if job.finished_at is None:
        raise Conflict(
            f"The job is {job.state}. Cancel it (POST {listing.path(job.id)}/cancel) and delete it once it has ended.",
            code="job_not_ended",
        )
    user = session.scalar(_TRIES_IT_AGAIN, {"job_id": job.id})
    if user is not None:
        raise Conflict(
            f"Job {user} goes on from its checkpoints. Delete this one once that has ended, or cancel that first.",
            code="job_in_use",
        )


def _receipt(gone: DeletedJob) -> DeletionRead:
    return DeletionRead(
        id=gone.job_id,
        state="deleted",
        cause="expiry" if gone.requested_at is None else "request",
        requested_at=gone.requested_at,
        deleted_at=gone.deleted_at,
        erased=Erased.model_validate(gone.erased),
    )
