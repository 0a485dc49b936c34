"""A new job is stored and written whole, or nothing of it is left.

Objects go first, rows after them in one transaction, which is never open while the store is talked to.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from api import idempotency
from api.accounts import quotas
from api.db import transaction
from api.errors import FieldError, InvalidParameters
from api.idempotency import Answer
from api.jobs import listing, repository, requests
from api.jobs.inputs import Inputs, SourceGone
from api.jobs.locking import instant
from api.storage import StoreError
from api.webhooks import repository as webhooks

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.idempotency import Fresh, Replay
    from api.jobs.models import Job
    from api.jobs.plan import StagePlan
    from api.jobs.queue import Outlook
    from api.jobs.reading import JobReader
    from api.jobs.requests import Retry
    from api.jobs.schemas import JobParams
    from api.storage import ObjectStore

logger = logging.getLogger(__name__)

RETRY_AFTER = {"Retry-After": "1"}
"""When to look at a new job for the first time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job about to be written."""

    job: Job
    inputs: Inputs
    stages: Sequence[StagePlan]
    deadline: timedelta | None
    webhook: JobParams | None = None
    """Parameters with a webhook."""
    retry: Retry | None = None


class OrderBook:
    """Where new jobs are written."""

    def __init__(self, sessions: sessionmaker[Session], store: ObjectStore, reader: JobReader) -> None:
        self._sessions = sessions
        self._store = store
        self._reader = reader

    def place(self, caller: Caller, order: Order, entry: Fresh | None) -> Answer:
        """Store what a job works with and write the job; or leave nothing of either.

        Raises:
            InvalidParameters: something that the request named is gone.
            Conflict: what it tries again works with is not there any more, or another request has the key now.
            QuotaExceeded: the account has as many jobs or bytes as it may.
            StoreError: the store does not take them.
        """
        job_id, keys = order.job.id, order.inputs.keys
        outlook = self._reader.outlook()
        try:
            order.inputs.store(self._store)
            with transaction(self._sessions) as session:
                return self._write(session, caller, order, entry, outlook)
        except SourceGone as gone:
            self._discard(job_id, keys)
            if order.retry is not None:
                raise requests.not_retryable("What it works with has been deleted; submit a new job.") from gone
            detail = "it was deleted a moment ago; upload it again"
            raise InvalidParameters(
                errors=[FieldError(pointer=gone.copy.pointer, detail=detail, code="gone")]
            ) from gone
        except _TriedAlready as tried:
            self._discard(job_id, keys)
            return self.accept_existing(caller, tried.job_id, entry)
        except Exception:
            self._discard(job_id, keys)
            raise

    def accept_existing(self, caller: Caller, job_id: uuid.UUID, entry: Fresh | None) -> Answer:
        """Answer a request with a job that is there already."""
        outlook = self._reader.outlook()
        with transaction(self._sessions) as session:
            return self._accept(session, caller, job_id, entry, outlook)

    def _write(self, session: Session, caller: Caller, order: Order, entry: Fresh | None, outlook: Outlook) -> Answer:
        """Write a job and the outcome of the request for it."""
        job, retry = order.job, order.retry
        if retry is not None:
            found = requests.prepare_retry(session, account_id=caller.account_id, job_id=retry.retry_of)
            if not isinstance(found, requests.Retry):
                raise _TriedAlready(found)
        used = quotas.reserve(session, caller.account_id, stored_bytes=order.inputs.bytes)
        if order.deadline is not None:
            job.deadline_at = instant(session) + order.deadline
        job.images, job.loras = list(order.inputs.images), list(order.inputs.loras)
        repository.insert_job(session, job, order.stages, checkpoints=None if retry is None else retry.checkpoints)
        if order.webhook is not None and order.webhook.webhook_url is not None:
            webhooks.add_job_endpoint(
                session,
                account_id=caller.account_id,
                job_id=job.id,
                url=order.webhook.webhook_url,
                events=order.webhook.webhook_events or (),
                secret=order.webhook.webhook_secret,
            )
        if retry is not None:
            webhooks.copy_job_endpoint(session, job_id=retry.retry_of, to_job_id=job.id)
        session.flush()
        return self._accept(session, caller, job.id, entry, outlook, headers=used.headers())

    def _accept(
        self,
        session: Session,
        caller: Caller,
        job_id: uuid.UUID,
        entry: Fresh | None,
        outlook: Outlook,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        body = self._reader.describe(session, caller, job_id, outlook).job.model_dump_json()
        location, status = listing.path(job_id), HTTPStatus.ACCEPTED
        if entry is not None:
            idempotency.complete(session, entry, job_id=job_id, status=status, body=body, location=location)
        told = {"Location": location, **RETRY_AFTER, **idempotency.expiry(entry), **(headers or {})}
        return Answer(id=job_id, status=status, body=body, headers=told)

    def _discard(self, job_id: uuid.UUID, keys: list[str]) -> None:
        """Delete the objects of a job that was not written.

        A commit whose answer got lost may have happened after all; then, and if nobody can tell, they stay.
        """
        try:
            with transaction(self._sessions) as session:
                if listing.job_exists(session, job_id):
                    return
            self._store.delete(keys)
        except (StoreError, SQLAlchemyError) as error:
            logger.warning("inputs of job %s, which was not written, may be left in the store: %s", job_id, error)


class _TriedAlready(Exception):
    """Somebody else's request made the job that tries this one again, a moment ago."""

    def __init__(self, job_id: uuid.UUID) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def again(done: Replay) -> Answer:
    """Return the answer to a request that was answered with a job before."""
    answer = idempotency.again(done)
    return replace(answer, headers={**answer.headers, **RETRY_AFTER})
