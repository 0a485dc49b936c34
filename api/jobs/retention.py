"""What is deleted when: ended jobs on request or after a while, their checkpoints and reports of progress sooner.

Objects go first, rows after them: a row without objects is found again, an object without a row is not. Never commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, func, select, text, tuple_, update

from api.accounts.models import IdempotencyKey
from api.accounts.quotas import add_stored
from api.jobs.events import EventType
from api.jobs.locking import instant
from api.jobs.models import DeletedJob, Event, Job, Stage
from api.jobs.schemas import Erased, Tally
from api.loras.making import withdraw_made
from api.object_keys import job_prefix
from api.webhooks.models import WebhookEndpoint

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement
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

SWEEP_AFTER = timedelta(hours=1)
"""So long after a deletion a job's place in the store is emptied once more: a worker that was cut off when the job
ended may have written on, but not for longer than its lease and the patience of its requests."""

_INVENTORY = text(
    """
    SELECT 'inputs' AS category, count(*) AS items, coalesce(sum(bytes), 0)::bigint AS bytes
    FROM (SELECT bytes FROM job_images WHERE job_id = :job_id
          UNION ALL SELECT bytes FROM job_loras WHERE job_id = :job_id) AS inputs
    UNION ALL
    SELECT 'previews', count(*), coalesce(sum(bytes), 0)::bigint
    FROM artifacts WHERE job_id = :job_id AND starts_with(content_type, 'image/')
    UNION ALL
    SELECT 'artifacts', count(*), coalesce(sum(bytes), 0)::bigint
    FROM artifacts WHERE job_id = :job_id AND NOT starts_with(content_type, 'image/')
    UNION ALL
    SELECT 'checkpoints', count(*), coalesce(sum((file ->> 'bytes')::bigint), 0)::bigint
    FROM stages, jsonb_array_elements(checkpoint -> 'files') AS file
    WHERE job_id = :job_id AND starts_with(file ->> 'key', :prefix)
    UNION ALL
    SELECT 'logs', count(*), coalesce(sum(octet_length(message)), 0)::bigint
    FROM job_logs WHERE job_id = :job_id
    """
)
"""A checkpoint of another job that this one goes on from is that one's."""


@dataclass(frozen=True, slots=True)
class OverdueJob:
    """An ended job that is to go, or a deleted one whose place in the store is to be looked at again."""

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
    """Return ended jobs that are to be purged: objects first, then `purge_job`.

    Those whose owners asked for it come first. Then those whose own time is over, and those without one that ended
    before then; none of these that an unfinished retry may still draw on. Then deleted ones whose place in the store is
    to be looked at once more.

    Args:
        session: an open transaction.
        finished_before: since when a job has to have ended that asked for no time of its own.
        limit: most jobs.
    """
    now = instant(session)
    requested = select(Job.id, Job.account_id).where(Job.deletion_requested_at.is_not(None))
    expired = select(Job.id, Job.account_id).where(Job.expires_at < now, _NOT_DRAWN_ON.bindparams(finished_before=now))
    old = select(Job.id, Job.account_id).where(
        Job.finished_at < finished_before,
        Job.expires_at.is_(None),
        _NOT_DRAWN_ON.bindparams(finished_before=finished_before),
    )
    unswept = select(DeletedJob.job_id, DeletedJob.account_id).where(_to_be_swept(now))
    found: dict[uuid.UUID, OverdueJob] = {}
    for query, order in (
        (requested, Job.deletion_requested_at),
        (expired, Job.expires_at),
        (old, Job.finished_at),
        (unswept, DeletedJob.deleted_at),
    ):
        rows = session.execute(query.order_by(order).limit(limit - len(found)))
        found |= {row[0]: OverdueJob(row[0], row[1]) for row in rows if row[0] not in found}
    return list(found.values())


def purge_job(session: Session, job_id: uuid.UUID) -> bool:
    """Delete an ended job with all its rows and leave a receipt; do so after its objects.

    False if it has not ended or is gone already; of one that is, note that its place in the store was looked at again.

    Locks are taken in the order of `lock_job`, stages first, so that a late cancel waits instead of deadlocking.
    """
    session.execute(select(Stage.id).where(Stage.job_id == job_id).order_by(Stage.id).with_for_update())
    job = session.scalars(select(Job).where(Job.id == job_id, Job.finished_at.is_not(None)).with_for_update()).first()
    if job is None:
        _note_sweep(session, job_id)
        return False
    withdraw_made(session, job_id)  # as a rule that was done before its objects went
    erased = inventory(session, job)
    session.add(
        DeletedJob(
            job_id=job_id,
            account_id=job.account_id,
            requested_at=job.deletion_requested_at,
            erased=erased.model_dump(mode="json"),
        )
    )
    account_id = job.account_id
    session.expunge(job)  # its rows go by a statement
    for model, column in ((WebhookEndpoint, WebhookEndpoint.job_id), (Job, Job.id)):
        session.execute(delete(model).where(column == job_id).execution_options(synchronize_session=False))
    add_stored(session, account_id, -erased.inputs.bytes - erased.previews.bytes - erased.artifacts.bytes)
    return True


def inventory(session: Session, job: Job) -> Erased:
    """Return what a job has, by its records: what is deleted with it."""
    values = {"job_id": job.id, "prefix": job_prefix(job.account_id, job.id)}
    rows = session.execute(_INVENTORY, values)
    return Erased(**{row.category: Tally(count=row.items, bytes=row.bytes) for row in rows})


def _to_be_swept(now: datetime) -> ColumnElement[bool]:
    return and_(DeletedJob.swept_at.is_(None), DeletedJob.deleted_at < now - SWEEP_AFTER)


def _note_sweep(session: Session, job_id: uuid.UUID) -> None:
    now = instant(session)
    session.execute(
        update(DeletedJob)
        .where(DeletedJob.job_id == job_id, _to_be_swept(now))
        .values(swept_at=now)
        .execution_options(synchronize_session=False)
    )


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
