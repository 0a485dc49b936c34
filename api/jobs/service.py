"""What happens to jobs on request: submit, cancel, stop, try again.

Each call writes in one transaction, and never holds one while it talks to the store.
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from api import idempotency
from api.accounts import quotas
from api.db import transaction
from api.idempotency import Fresh, Ledger, Replay, fingerprint
from api.identifiers import uuid7
from api.jobs import images, listing, repository, requests, wishes
from api.jobs.engines import EngineName, MockOutcome
from api.jobs.locking import instant
from api.jobs.models import Job
from api.jobs.plan import plan
from api.jobs.reading import JobReader
from api.jobs.submission import Darkroom, Submission, Upload, check
from api.storage import ObjectMissing, StoreError
from api.webhooks import repository as webhooks
from duolora.config import SCHEMA_VERSION

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from typing import Any

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.jobs.plan import StagePlan
    from api.jobs.queue import Outlook
    from api.jobs.requests import Retry
    from api.jobs.schemas import JobParams, JobRead
    from api.settings import ApiSettings
    from api.storage import ObjectStore
    from duolora.config import PersonalizeConfig

__all__ = ["Accepted", "JobService", "Submission", "Upload"]

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
"""When to look at a new job for the first time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The answer to a request for a new job; sent again as it was when the request is."""

    id: uuid.UUID
    body: str
    """The job, as JSON."""
    status: int = HTTPStatus.ACCEPTED
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """A job about to be written."""

    job: Job
    stages: Sequence[StagePlan]
    deadline: timedelta | None
    webhook: JobParams | None = None
    """Parameters with a webhook."""
    retry: Retry | None = None


class JobService:
    """Decides about jobs for their owners."""

    def __init__(self, settings: ApiSettings, sessions: sessionmaker[Session], store: ObjectStore) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._darkroom = Darkroom(settings.images)
        self.reader = JobReader(settings, sessions, store)
        self._ledger = Ledger(
            sessions,
            keeps=timedelta(seconds=settings.idempotency_ttl_s),
            locks=timedelta(seconds=settings.idempotency_lock_s),
        )

    def submit(self, caller: Caller, submission: Submission) -> Accepted:
        """Check everything, store the pictures, write the job; a refusal or a failure leaves nothing behind.

        Raises:
            InvalidParameters: a field or a picture is refused, `errors` names each; or the key is another request's.
            Conflict: the same request is in flight.
            QuotaExceeded: the account has as many jobs or bytes as it may.
            StoreError: the pictures cannot be stored.
            Unavailable: too many submissions are being read.
        """
        params = wishes.parse(submission.params)

        def mark() -> str:
            return fingerprint("POST /jobs", params.model_dump(mode="json", exclude_unset=True), submission.digests())

        with self._ledger.once(caller.account_id, submission.idempotency_key, mark) as entry:
            return _again(entry) if isinstance(entry, Replay) else self._submit(caller, params, submission, entry)

    def cancel(self, caller: Caller, job_id: uuid.UUID) -> JobRead:
        """Ask for a job to be given up. Asking again changes nothing.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
        """
        outlook = self.reader.outlook()
        with transaction(self._sessions) as session:
            if not repository.request_cancel(session, account_id=caller.account_id, job_id=job_id):
                raise listing.missing(session, account_id=caller.account_id, job_id=job_id)
            return self.reader.describe(session, caller, job_id, outlook).job

    def stop(self, caller: Caller, job_id: uuid.UUID) -> JobRead:
        """Ask for a job to end early, with what it has. Asking again changes nothing.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
            Conflict: there is nothing to be merged yet.
        """
        outlook = self.reader.outlook()
        with transaction(self._sessions) as session:
            requests.request_stop(session, account_id=caller.account_id, job_id=job_id)
            return self.reader.describe(session, caller, job_id, outlook).job

    def retry(
        self, caller: Caller, job_id: uuid.UUID, *, origin: str, traceparent: str | None, key: str | None
    ) -> Accepted:
        """Make a job that tries an ended one again, from its checkpoints; one that does so already is returned.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
            Conflict: it cannot be tried again, or the same request is in flight.
            InvalidParameters: the key is another request's.
            QuotaExceeded: the account has as many jobs or bytes as it may.
            StoreError: its pictures cannot be copied.
        """
        with self._ledger.once(caller.account_id, key, lambda: fingerprint(f"POST /jobs/{job_id}/retry", {})) as entry:
            if isinstance(entry, Replay):
                return _again(entry)
            with transaction(self._sessions) as session:
                found = requests.prepare_retry(session, account_id=caller.account_id, job_id=job_id)
            if not isinstance(found, requests.Retry):
                return self._accept_existing(caller, found, entry)
            fresh_id = uuid7()
            job = Job(
                **found.fields | {"priority": min(found.fields["priority"], caller.max_priority), "retry_of": job_id},
                id=fresh_id,
                account_id=caller.account_id,
                self_url=origin.rstrip("/") + listing.path(fresh_id),
                traceparent=traceparent,
            )
            job.images = found.rows(caller.account_id, fresh_id)
            keys = {image["key"]: row.key for image, row in zip(found.images, job.images, strict=True)}
            order = _Order(job=job, stages=found.stages, deadline=found.deadline, retry=found)
            return self._keep_or_discard(caller, order, entry, copies=keys)

    def _submit(self, caller: Caller, params: JobParams, submission: Submission, entry: Fresh | None) -> Accepted:
        config = wishes.resolve(params, self._settings.base_models, self._settings.default_base_model)
        check(submission, params, caller, self._settings)
        quotas.precheck(self._sessions, caller.account_id)
        job = _job(caller, uuid7(), params, config, submission)
        with tempfile.TemporaryDirectory(prefix="duolora-upload-") as folder:
            pictures = self._darkroom.develop(submission, Path(folder), account_id=caller.account_id, job_id=job.id)
            job.images = [picture.row for picture in pictures]
            order = _Order(
                job=job,
                stages=plan(params.kind, config),
                deadline=None if params.deadline_seconds is None else timedelta(seconds=params.deadline_seconds),
                webhook=None if params.webhook_url is None else params,
            )
            files = {picture.row.key: picture.path for picture in pictures}
            return self._keep_or_discard(caller, order, entry, files=files)

    def _keep_or_discard(
        self,
        caller: Caller,
        order: _Order,
        entry: Fresh | None,
        *,
        files: Mapping[str, Path] | None = None,
        copies: Mapping[str, str] | None = None,
    ) -> Accepted:
        """Store the pictures, from files or from another job's, and write the job; or leave nothing of either."""
        job_id, keys = order.job.id, [row.key for row in order.job.images]
        outlook = self.reader.outlook()
        try:
            self._store.put_files(files or {}, images.CONTENT_TYPE)
            for source, target in (copies or {}).items():
                self._store.copy(source, target)
            with transaction(self._sessions) as session:
                return self._write(session, caller, order, entry, outlook)
        except ObjectMissing as error:
            self._discard(job_id, keys)
            if order.retry is None:
                raise
            raise requests.not_retryable("Its pictures have been deleted; submit a new job.") from error
        except _TriedAlready as tried:
            self._discard(job_id, keys)
            return self._accept_existing(caller, tried.job_id, entry)
        except Exception:
            self._discard(job_id, keys)
            raise

    def _write(
        self, session: Session, caller: Caller, order: _Order, entry: Fresh | None, outlook: Outlook
    ) -> Accepted:
        """Write a job and the outcome of the request for it."""
        job, retry = order.job, order.retry
        if retry is not None:
            found = requests.prepare_retry(session, account_id=caller.account_id, job_id=retry.retry_of)
            if not isinstance(found, requests.Retry):
                raise _TriedAlready(found)
        used = quotas.reserve(session, caller.account_id, stored_bytes=sum(row.bytes for row in job.images))
        if order.deadline is not None:
            job.deadline_at = instant(session) + order.deadline
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

    def _accept_existing(self, caller: Caller, job_id: uuid.UUID, entry: Fresh | None) -> Accepted:
        outlook = self.reader.outlook()
        with transaction(self._sessions) as session:
            return self._accept(session, caller, job_id, entry, outlook)

    def _accept(
        self,
        session: Session,
        caller: Caller,
        job_id: uuid.UUID,
        entry: Fresh | None,
        outlook: Outlook,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Accepted:
        body = self.reader.describe(session, caller, job_id, outlook).job.model_dump_json()
        accepted = Accepted(id=job_id, body=body, headers=_headers(job_id, entry) | dict(headers or {}))
        if entry is not None:
            idempotency.complete(
                session, entry, job_id=job_id, status=accepted.status, body=body, location=listing.path(job_id)
            )
        return accepted

    def _discard(self, job_id: uuid.UUID, keys: list[str]) -> None:
        """Delete the pictures of a job that was not written.

        A commit whose answer got lost may have happened after all; then, and if nobody can tell, they stay.
        """
        try:
            with transaction(self._sessions) as session:
                if listing.job_exists(session, job_id):
                    return
            self._store.delete(keys)
        except (StoreError, SQLAlchemyError) as error:
            logger.warning("pictures of job %s, which was not written, may be left in the store: %s", job_id, error)


class _TriedAlready(Exception):
    """Somebody else's request made the job that tries this one again, a moment ago."""

    def __init__(self, job_id: uuid.UUID) -> None:
        super().__init__(job_id)
        self.job_id = job_id


def _headers(job_id: uuid.UUID, entry: Fresh | Replay | None) -> dict[str, str]:
    headers = {"Location": listing.path(job_id), "Retry-After": str(RETRY_AFTER_S)}
    if entry is not None:
        headers["Idempotency-Expires"] = format_datetime(entry.expires_at, usegmt=True)
    return headers


def _again(done: Replay) -> Accepted:
    headers = _headers(done.job_id, done) | {"Location": done.location, "Idempotency-Replayed": "true"}
    return Accepted(id=done.job_id, status=done.status, body=done.body, headers=headers)


def _job(
    caller: Caller, job_id: uuid.UUID, params: JobParams, config: PersonalizeConfig, submission: Submission
) -> Job:
    wished: dict[str, Any] = params.model_dump(mode="json", exclude_unset=True, exclude={"webhook_secret"})
    return Job(
        id=job_id,
        account_id=caller.account_id,
        kind=params.kind,
        params=config.model_dump(mode="json"),
        params_version=SCHEMA_VERSION,
        request=wished,
        mock_outcome=(params.mock_outcome or MockOutcome.SUCCEED) if params.engine is EngineName.MOCK else None,
        priority=params.priority,
        retention_days=params.retention_days,
        webhook_url=params.webhook_url,
        self_url=submission.origin.rstrip("/") + listing.path(job_id),
        traceparent=submission.traceparent,
    )
