"""What is deleted when: ended jobs after a while, their checkpoints and their reports of progress sooner.

Objects go first, rows after them: a row without objects is found again, an object without a row is not. Never commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select, text, tuple_

from api.accounts.models import IdempotencyKey
from api.accounts.quotas import add_stored
from api.jobs.events import EventType
from api.jobs.locking import instant
from api.jobs.models import Artifact, Event, Job, JobImage, Stage
from api.webhooks.models import WebhookEndpoint

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

TRIM_WINDOW = timedelta(days=1)
"""How long after their time events are looked for. What a dispatcher misses while it is away goes with the job."""

_NOT_DRAWN_ON = text(
    """
    NOT EXISTS (
      WITH RECURSIVE retries AS (
        SELECT first.id, first.finished_at FROM jobs first WHERE first.retry_of = jobs.id
        UNION ALL
        SELECT next.id, next.finished_at FROM jobs next JOIN retries ON next.retry_of = retries.id)
      SELECT 1 FROM retries WHERE retries.finished_at IS NULL OR retries.finished_at >= :finished_before)
    """
)
"""Every retry of the job, and every retry of a retry, ended before then: none needs the job's checkpoints any more.

A retry that ended later may be tried again itself, and then draws on the same checkpoints.
"""


@dataclass(frozen=True, slots=True)
class OverdueJob:
    """An ended job whose time is over."""

    job_id: uuid.UUID
    account_id: uuid.UUID


@dataclass(frozen=True, slots=True)
class StaleCheckpoint:
    """A checkpoint of an ended job that nobody has tried again in time."""

    stage_id: uuid.UUID
    job_id: uuid.UUID
    account_id: uuid.UUID
    checkpoint: dict[str, Any]


def overdue_jobs(session: Session, *, finished_before: datetime, limit: int) -> list[OverdueJob]:
    """Return ended jobs that are to be purged, oldest first; none that an unfinished retry may still draw on."""
    rows = session.execute(
        select(Job.id, Job.account_id)
        .where(Job.finished_at < finished_before, _NOT_DRAWN_ON.bindparams(finished_before=finished_before))
        .order_by(Job.finished_at)
        .limit(limit)
    )
    return [OverdueJob(row.id, row.account_id) for row in rows]


def purge_job(session: Session, job_id: uuid.UUID) -> bool:
    """Delete an ended job with all its rows; do so after its objects. False if it is gone already or has not ended.

    Locks are taken in the order of `lock_job`, stages first, so that a late cancel waits instead of deadlocking.
    """
    session.execute(select(Stage.id).where(Stage.job_id == job_id).order_by(Stage.id).with_for_update())
    row = session.execute(
        select(Job.account_id).where(Job.id == job_id, Job.finished_at.is_not(None)).with_for_update()
    ).first()
    if row is None:
        return False
    images = session.scalar(select(func.sum(JobImage.bytes)).where(JobImage.job_id == job_id))
    artifacts = session.scalar(select(func.sum(Artifact.bytes)).where(Artifact.job_id == job_id))
    session.execute(
        delete(WebhookEndpoint).where(WebhookEndpoint.job_id == job_id).execution_options(synchronize_session=False)
    )
    session.execute(delete(Job).where(Job.id == job_id).execution_options(synchronize_session=False))
    add_stored(session, row.account_id, -int(images or 0) - int(artifacts or 0))
    return True


def trim_events(session: Session, *, older_than: timedelta, limit: int) -> int:
    """Delete reports of progress of jobs that ended so long ago; returns how many. Nothing but the newest mattered."""
    now = instant(session)
    doomed = (
        select(Event.id)
        .join(Job, Job.id == Event.job_id)
        .where(
            Job.finished_at.between(now - older_than - TRIM_WINDOW, now - older_than),
            Event.type == EventType.PROGRESS,
        )
        .limit(limit)
    )
    gone = session.execute(
        delete(Event).where(Event.id.in_(doomed)).returning(Event.id).execution_options(synchronize_session=False)
    )
    return len(gone.all())


def drop_expired_keys(session: Session, *, limit: int) -> int:
    """Delete outcomes of requests that nobody may send again any more; returns how many."""
    key = tuple_(IdempotencyKey.account_id, IdempotencyKey.key)
    doomed = (
        select(IdempotencyKey.account_id, IdempotencyKey.key)
        .where(IdempotencyKey.expires_at < func.now())
        .order_by(IdempotencyKey.expires_at)
        .limit(limit)
    )
    gone = session.execute(
        delete(IdempotencyKey)
        .where(key.in_(doomed), IdempotencyKey.expires_at < func.now())
        .returning(IdempotencyKey.key)
        .execution_options(synchronize_session=False)
    )
    return len(gone.all())


def stale_checkpoints(session: Session, *, finished_before: datetime, limit: int) -> Sequence[StaleCheckpoint]:
    """Return checkpoints of jobs that ended before then and that no unfinished retry may draw on."""
    rows = session.execute(
        select(Stage.id, Stage.job_id, Stage.account_id, Stage.checkpoint)
        .join(Job, Job.id == Stage.job_id)
        .where(
            Job.finished_at < finished_before,
            Stage.checkpoint.is_not(None),
            _NOT_DRAWN_ON.bindparams(finished_before=finished_before),
        )
        .order_by(Job.finished_at, Stage.id)
        .limit(limit)
    )
    return [StaleCheckpoint(*row[:3], checkpoint=row.checkpoint or {}) for row in rows]


def forget_checkpoint(session: Session, stage_id: uuid.UUID) -> None:
    """Drop the pointer of an ended job's stage; do so after its objects."""
    stage = session.get(Stage, stage_id, with_for_update={"key_share": True}, populate_existing=True)
    if stage is not None and stage.finished_at is not None:
        stage.checkpoint = None
