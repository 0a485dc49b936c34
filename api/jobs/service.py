"""What happens to jobs on request: submit, read, list, cancel. Each call is one transaction."""

from __future__ import annotations

import logging
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy.exc import SQLAlchemyError

from api.db import transaction
from api.errors import FieldError, InvalidParameters, NotFound, Unavailable
from api.identifiers import uuid7
from api.jobs import images, listing, repository, view, wishes
from api.jobs.models import Job, JobImage, Side
from api.jobs.plan import plan
from api.jobs.schemas import JobPage
from api.jobs.states import TERMINAL_JOBS
from api.storage import StoreError, input_key
from duolora.config import MAX_IMAGES_PER_SIDE, SCHEMA_VERSION

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session, sessionmaker

    from api.accounts.service import Caller
    from api.jobs.images import CleanImage
    from api.jobs.schemas import JobParams, JobRead
    from api.jobs.states import JobState
    from api.settings import ApiSettings
    from api.storage import ObjectStore
    from duolora.config import PersonalizeConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of the request."""

    file: BinaryIO
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """Everything a caller sent with a job."""

    params: str
    """The JSON part, unread."""
    content: Sequence[Upload]
    style: Sequence[Upload]
    origin: str
    """Origin by which the caller reached us; the job's own URL is made of it."""
    traceparent: str | None

    @property
    def sides(self) -> tuple[tuple[Side, Sequence[Upload]], ...]:
        """Both sides with their files."""
        return (Side.CONTENT, self.content), (Side.STYLE, self.style)


class JobService:
    """Decides about jobs for their owners."""

    def __init__(self, settings: ApiSettings, sessions: sessionmaker[Session], store: ObjectStore) -> None:
        self._settings = settings
        self._sessions = sessions
        self._store = store
        self._decoding = threading.BoundedSemaphore(settings.images.parallel)
        self._link_lifetime = timedelta(seconds=settings.artifact_url_lifetime_s)

    def submit(self, caller: Caller, submission: Submission) -> JobRead:
        """Check everything, store the pictures, write the job; a refusal or a failure leaves nothing behind.

        Raises:
            InvalidParameters: a field or a picture is refused; `errors` names each.
            StoreError: the pictures cannot be stored.
            Unavailable: too many submissions are being read.
        """
        params = wishes.parse(submission.params)
        config = wishes.resolve(params, self._settings.base_models, self._settings.default_base_model)
        self._check_rest(caller, params, submission)
        job_id = uuid7()
        with tempfile.TemporaryDirectory(prefix="duolora-upload-") as folder:
            with self._decoder():
                cleaned = self._clean(submission, Path(folder))
            rows = [
                JobImage(
                    side=side,
                    ordinal=ordinal,
                    key=input_key(caller.account_id, job_id, side, ordinal, image.sha256),
                    sha256=image.sha256,
                    bytes=image.bytes,
                    width=image.width,
                    height=image.height,
                    content_type=images.CONTENT_TYPE,
                )
                for side, ordinal, image in cleaned
            ]
            job = _job(caller, job_id, params, config, submission)
            job.images = rows
            try:
                for row, (_, _, image) in zip(rows, cleaned, strict=True):
                    self._store.put_file(row.key, image.path, row.content_type)
                with transaction(self._sessions) as session:
                    repository.insert_job(session, job, plan(params.kind, config))
                    return self._describe(session, caller, job_id)
            except (StoreError, SQLAlchemyError):
                self._discard(job_id, [row.key for row in rows])
                raise

    def read(self, caller: Caller, job_id: uuid.UUID) -> JobRead:
        """Return a job of the caller's.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
        """
        with transaction(self._sessions) as session:
            return self._describe(session, caller, job_id)

    def page(self, caller: Caller, *, cursor: str | None, limit: int, state: JobState | None) -> JobPage:
        """Return a page of the caller's jobs, newest first.

        Raises:
            InvalidParameters: the cursor is none of ours.
        """
        try:
            after = None if cursor is None else listing.Cursor.decode(cursor)
        except listing.InvalidCursor as error:
            detail = "pass next_cursor of the page before, unchanged, or leave it out"
            raise InvalidParameters(errors=[FieldError(pointer="/cursor", detail=detail, code="invalid")]) from error
        with transaction(self._sessions) as session:
            jobs, following = listing.list_jobs(
                session, account_id=caller.account_id, after=after, limit=limit, state=state
            )
            now = datetime.now(UTC)
            return JobPage(
                items=[view.summarize(job, now) for job in jobs],
                next_cursor=None if following is None else following.encode(),
                limit=limit,
                state=state,
            )

    def cancel(self, caller: Caller, job_id: uuid.UUID) -> tuple[JobRead, bool]:
        """Ask for a job to stop; returns it and whether it has ended. Asking again changes nothing.

        Raises:
            NotFound: there is none of that id, or it is somebody else's.
        """
        with transaction(self._sessions) as session:
            if not repository.request_cancel(session, account_id=caller.account_id, job_id=job_id):
                raise NotFound(f"There is no job {job_id}.")
            session.flush()
            job = self._describe(session, caller, job_id)
            return job, job.state in TERMINAL_JOBS

    def _describe(self, session: Session, caller: Caller, job_id: uuid.UUID) -> JobRead:
        job = listing.read_job(session, account_id=caller.account_id, job_id=job_id)
        if job is None:
            raise NotFound(f"There is no job {job_id}.")
        return view.describe(job, self._store, link_lifetime=self._link_lifetime)

    def _check_rest(self, caller: Caller, params: JobParams, submission: Submission) -> None:
        """Refuse what the configuration does not know of: numbers of files, captions, priority, webhook."""
        errors = [
            *wishes.check_webhook(params.webhook_url, self._settings.webhooks.allow_cidrs),
            *wishes.check_priority(params.priority, caller.max_priority),
            *wishes.check_captions("content", params.content_captions, len(submission.content)),
            *wishes.check_captions("style", params.style_captions, len(submission.style)),
        ]
        for side, uploads in submission.sides:
            if not 1 <= len(uploads) <= MAX_IMAGES_PER_SIDE:
                code = "too_many" if uploads else "missing"
                detail = f"{len(uploads)} pictures came; send 1 to {MAX_IMAGES_PER_SIDE} files in {side}_images"
                errors.append(FieldError(pointer=f"/{side}_images", detail=detail, code=code))
        if errors:
            raise InvalidParameters(errors=errors)

    @contextmanager
    def _decoder(self) -> Iterator[None]:
        """Take a turn at decoding. Whoever waits occupies a thread that other requests need, so nobody waits long."""
        if not self._decoding.acquire(timeout=self._settings.images.wait_s):
            raise Unavailable("Too many pictures are being read at the moment; send the job again.", code="busy")
        try:
            yield
        finally:
            self._decoding.release()

    def _clean(self, submission: Submission, folder: Path) -> list[tuple[Side, int, CleanImage]]:
        """Write every picture anew; complains about all bad ones at once."""
        cleaned, errors = [], []
        for side, uploads in submission.sides:
            for ordinal, upload in enumerate(uploads):
                path = folder / f"{side}-{ordinal}.png"
                try:
                    image = images.clean(upload.file, upload.size, path, self._settings.images)
                except images.ImageRefused as refusal:
                    pointer = f"/{side}_images/{ordinal}"
                    errors.append(FieldError(pointer=pointer, detail=refusal.detail, code=refusal.code))
                else:
                    cleaned.append((side, ordinal, image))
        if errors:
            raise InvalidParameters("Some pictures cannot be used.", errors=errors)
        return cleaned

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


def _job(
    caller: Caller, job_id: uuid.UUID, params: JobParams, config: PersonalizeConfig, submission: Submission
) -> Job:
    return Job(
        id=job_id,
        account_id=caller.account_id,
        kind=params.kind,
        params=config.model_dump(mode="json"),
        params_version=SCHEMA_VERSION,
        request=params.model_dump(mode="json", exclude_unset=True),
        priority=params.priority,
        webhook_url=params.webhook_url,
        self_url=submission.origin.rstrip("/") + view.self_path(job_id),
        traceparent=submission.traceparent,
    )
