"""What an account may read of its jobs, page by page. Never commits."""

from __future__ import annotations

import base64
import binascii
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import select, tuple_
from sqlalchemy.orm import selectinload

from api.jobs.models import Job

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from api.jobs.states import JobState

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class InvalidCursor(ValueError):
    """The text is no cursor of ours."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last job of a page: the next one begins after it, whatever was inserted meanwhile."""

    created_at: datetime
    job_id: uuid.UUID

    def encode(self) -> str:
        """Return the opaque text."""
        micros = (self.created_at - _EPOCH) // _MICROSECOND
        return base64.urlsafe_b64encode(micros.to_bytes(8) + self.job_id.bytes).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Read the opaque text.

        Raises:
            InvalidCursor: it was not made by `encode`.
        """
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            if len(raw) != 8 + 16:
                raise InvalidCursor(text)
            return cls(_EPOCH + int.from_bytes(raw[:8]) * _MICROSECOND, uuid.UUID(bytes=raw[8:]))
        except (binascii.Error, ValueError, OverflowError) as error:
            raise InvalidCursor(text) from error


def read_job(session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID) -> Job | None:
    """Return an account's job with everything that describes it."""
    return session.scalars(
        select(Job)
        .where(Job.id == job_id, Job.account_id == account_id)
        .options(selectinload(Job.stages), selectinload(Job.images), selectinload(Job.artifacts)),
        execution_options={"populate_existing": True},
    ).one_or_none()


def job_exists(session: Session, job_id: uuid.UUID) -> bool:
    """Tell whether a job was committed, whoever it belongs to."""
    return session.scalar(select(Job.id).where(Job.id == job_id)) is not None


def list_jobs(
    session: Session, *, account_id: uuid.UUID, after: Cursor | None, limit: int, state: JobState | None
) -> tuple[list[Job], Cursor | None]:
    """Return a page of an account's jobs, newest first, and the cursor of the next page if there is one."""
    query = (
        select(Job)
        .where(Job.account_id == account_id)
        .order_by(Job.created_at.desc(), Job.id.desc())
        .limit(limit + 1)
        .options(selectinload(Job.stages))
    )
    if after is not None:
        query = query.where(tuple_(Job.created_at, Job.id) < tuple_(after.created_at, after.job_id))
    if state is not None:
        query = query.where(Job.state == state)
    jobs = list(session.scalars(query))
    page = jobs[:limit]
    return page, Cursor(page[-1].created_at, page[-1].id) if len(jobs) > limit else None
