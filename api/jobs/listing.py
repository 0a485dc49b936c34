"""What an account may read of its jobs: one by one, each in one statement, or page by page. Never commits."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from api.cursors import Cursor
from api.errors import Gone, NotFound, ServiceError
from api.jobs.models import Job
from api.jobs.plan import JobKind
from api.jobs.states import JobState, StageState

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection, Row

TRAINING, SLIDER = "training_", "slider_"
"""What the names of files begin with that show a training, and of the pictures of a slider."""
SHOWN_MARK = "p"
"""At the end of the version of a job that has such; versions are hexadecimal otherwise."""

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """A stage as it was read."""

    name: str
    state: StageState
    attempt: int
    weight: float | None
    progress: Document | None
    checkpoint: Document | None
    """`step` and `total` of its checkpoint."""
    timings: Document | None
    error: Document | None
    started_at: datetime | None
    finished_at: datetime | None
    stopped_early: bool
    reused_job_id: uuid.UUID | None

    @classmethod
    def of(cls, row: Document) -> Self:
        """Read the JSON object that the statements below make."""
        reused = row.pop("reused_job_id")
        return cls(
            state=StageState(row.pop("state")),
            started_at=_instant(row.pop("started_at")),
            finished_at=_instant(row.pop("finished_at")),
            reused_job_id=None if reused is None else uuid.UUID(reused),
            **row,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A job as it was read, for a list."""

    id: uuid.UUID
    kind: JobKind
    name: str | None
    mock_outcome: str | None
    state: JobState
    priority: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    cancel_requested_at: datetime | None
    stop_requested_at: datetime | None
    retry_of: uuid.UUID | None
    error: Document | None
    expires_at: datetime | None
    """Null before its end, and if the installation decides."""
    stages: list[StageRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class FullJobRecord(JobRecord):
    """A job as it was read, with everything."""

    version: str
    """Another one as soon as anything of it is another, but for what only the clock changes."""
    request_id: str | None
    params: Document
    webhook_url: str | None
    images: list[Document]
    loras: list[Document]
    artifacts: list[Document]
    webhook: Document | None
    """`url`, `state`, `disabled_reason` and `last_status` of its endpoint."""
    worker_seconds: float
    """What workers have spent on it so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobVersion:
    """As much of a job as tells whether it has changed."""

    state: JobState
    version: str
    """As `FullJobRecord.version`."""
    last_event: int
    """Id of its newest event, 0 without any."""


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


_STAGES = """
    (SELECT coalesce(json_agg(json_build_object(
        'name', s.name, 'state', s.state, 'attempt', s.attempt, 'weight', s.weight, 'progress', s.progress,
        'timings', s.timings, 'error', s.error, 'started_at', s.started_at, 'finished_at', s.finished_at,
        'stopped_early', s.stopped_early, 'reused_job_id', s.reused_job_id,
        'checkpoint', CASE WHEN s.checkpoint IS NOT NULL
            THEN json_build_object('step', s.checkpoint -> 'step', 'total', s.checkpoint -> 'total') END
     ) ORDER BY s.ordinal), '[]') FROM stages s WHERE s.job_id = j.id) AS stages
"""
_SUMMARY = """
    j.id, j.kind, j.name, j.mock_outcome, j.state, j.priority, j.created_at, j.started_at, j.finished_at, j.deadline_at,
    j.cancel_requested_at, j.stop_requested_at, j.retry_of, j.error, j.expires_at
"""
_SHOWN = f"""
    (SELECT count(*) FROM artifacts a WHERE a.job_id = j.id AND starts_with(a.name, '{TRAINING}')) AS shown
"""  # noqa: S608 - made of constants
_WEBHOOK = """
    (SELECT json_build_object('url', w.url, 'state', w.state, 'disabled_reason', w.disabled_reason, 'last_status', (
        SELECT d.last_status FROM webhook_deliveries d WHERE d.endpoint_id = w.id AND d.last_status IS NOT NULL
        ORDER BY d.created_at DESC, d.id DESC LIMIT 1
     )) FROM webhook_endpoints w WHERE w.job_id = j.id ORDER BY w.created_at LIMIT 1) AS webhook
"""
_WORKED = """
    (SELECT coalesce(sum(seconds), 0)::float8 FROM (
        SELECT extract(epoch FROM max(coalesce(t.finished_at, clock_timestamp())) - t.started_at) / max(t.jobs)
            AS seconds
        FROM stages s JOIN stage_attempts t ON t.stage_id = s.id WHERE s.job_id = j.id
        GROUP BY t.worker_id, t.started_at
     ) runs) AS worker_seconds
"""
"""A worker does one thing at a time: attempts of a job that it began at one instant are one run, of both trainings."""
_ONE = "FROM jobs j WHERE j.id = :job_id AND j.account_id = :account_id AND j.deletion_requested_at IS NULL"
_VERSION = f"""
    md5(row(q.state, q.started_at, q.finished_at, q.cancel_requested_at, q.stop_requested_at, q.retry_of, q.error,
            q.stages::text, q.webhook::text, nullif(q.shown, 0))::text)
        || CASE WHEN q.shown > 0 THEN '{SHOWN_MARK}' ELSE '' END AS version
"""
"""Of what can change in a job's document. Its pictures and parameters cannot; its artifacts come with a stage's end,
but for those that show a training: a version has SHOWN_MARK at its end if there are any."""
_IN_FULL = text(f"""
    SELECT q.*, {_VERSION} FROM (
        SELECT {_SUMMARY}, {_STAGES}, {_SHOWN}, {_WEBHOOK}, {_WORKED}, j.request_id, j.params, j.webhook_url,
        (SELECT coalesce(json_agg(json_build_object(
            'side', i.side, 'ordinal', i.ordinal, 'sha256', i.sha256, 'bytes', i.bytes, 'width', i.width,
            'height', i.height
         ) ORDER BY i.side, i.ordinal), '[]') FROM job_images i WHERE i.job_id = j.id) AS images,
        (SELECT coalesce(json_agg(json_build_object(
            'role', l.role, 'ordinal', l.ordinal, 'lora_id', l.lora_id, 'name', l.name, 'sha256', l.sha256,
            'bytes', l.bytes, 'strength', l.strength
         ) ORDER BY l.role, l.ordinal), '[]') FROM job_loras l WHERE l.job_id = j.id) AS loras,
        (SELECT coalesce(json_agg(json_build_object(
            'name', a.name, 'filename', a.filename, 'key', a.key, 'content_type', a.content_type, 'sha256', a.sha256,
            'bytes', a.bytes
         ) ORDER BY a.created_at, a.name), '[]') FROM artifacts a WHERE a.job_id = j.id) AS artifacts
        {_ONE} OFFSET 0
    ) q
""")  # noqa: S608 - made of constants; without OFFSET the inner statements would be done twice
_GLANCE = text(f"""
    SELECT q.state, {_VERSION},
    coalesce((SELECT max(e.id) FROM events e WHERE e.job_id = :job_id), 0) AS last_event
    FROM (SELECT {_SUMMARY}, {_STAGES}, {_SHOWN}, {_WEBHOOK} {_ONE}) q
""")  # noqa: S608 - made of constants

_DELETED = text("""
    SELECT job_id FROM deleted_jobs WHERE job_id = :job_id AND account_id = :account_id
    UNION ALL
    SELECT id FROM jobs WHERE id = :job_id AND account_id = :account_id AND deletion_requested_at IS NOT NULL
""")
_PAGE = f"""
    SELECT {_SUMMARY}, {_STAGES} FROM jobs j
    WHERE j.account_id = :account_id AND j.deletion_requested_at IS NULL {{conditions}}
    ORDER BY j.created_at DESC, j.id DESC LIMIT :limit
"""  # noqa: S608 - made of constants


def read_job(session: Session | Connection, *, account_id: uuid.UUID, job_id: uuid.UUID) -> FullJobRecord:
    """Return an account's job with everything that describes it, as the transaction has left it so far.

    Raises:
        NotFound: the account has no such job.
        Gone: it was deleted.
    """
    if isinstance(session, Session):
        session.flush()
    row = session.execute(_IN_FULL, {"account_id": account_id, "job_id": job_id}).first()
    if row is None:
        raise missing(session, account_id=account_id, job_id=job_id)
    return FullJobRecord(**_columns(row))


def glance_at_job(connection: Connection, *, account_id: uuid.UUID, job_id: uuid.UUID) -> JobVersion:
    """Return whether an account's job has changed, without what describes it.

    Raises:
        NotFound: the account has no such job.
        Gone: it was deleted.
    """
    row = connection.execute(_GLANCE, {"account_id": account_id, "job_id": job_id}).first()
    if row is None:
        raise missing(connection, account_id=account_id, job_id=job_id)
    return JobVersion(state=JobState(row.state), version=row.version, last_event=row.last_event)


def is_owned(session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID) -> bool:
    """Tell whether an account has a job, be it on its way out."""
    return session.scalar(select(Job.id).where(Job.id == job_id, Job.account_id == account_id)) is not None


def is_there(session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID) -> bool:
    """Tell whether an account has a job that nobody has asked to delete."""
    mine = (Job.id == job_id, Job.account_id == account_id, Job.deletion_requested_at.is_(None))
    return session.scalar(select(Job.id).where(*mine)) is not None


def missing(session: Session | Connection, *, account_id: uuid.UUID, job_id: uuid.UUID) -> ServiceError:
    """Return why an account has no such job: it was deleted, or never was."""
    values = {"account_id": account_id, "job_id": job_id}
    if session.execute(_DELETED, values).first() is None:
        return NotFound(f"There is no job {job_id}.")
    return Gone(f"Job {job_id} has been deleted; DELETE {path(job_id)} answers with the receipt.")


def path(job_id: object) -> str:
    """Return the path of a job."""
    return f"/jobs/{job_id}"


def job_exists(session: Session, job_id: uuid.UUID) -> bool:
    """Tell whether a job was committed, whoever it belongs to."""
    return session.scalar(select(Job.id).where(Job.id == job_id)) is not None


def list_jobs(
    session: Session,
    *,
    account_id: uuid.UUID,
    after: Cursor | None,
    limit: int,
    states: Collection[JobState] = (),
    kinds: Collection[JobKind] = (),
) -> tuple[list[JobRecord], Cursor | None]:
    """Return a page of an account's jobs, newest first, and the cursor of the next page if there is one.

    Args:
        session: an open transaction.
        account_id: whose.
        after: the last job of the page before.
        limit: most jobs.
        states: only jobs in one of these, if there are any.
        kinds: only jobs of one of these, if there are any.
    """
    conditions, values = "", {"account_id": account_id, "limit": limit + 1}
    if after is not None:
        conditions += " AND (j.created_at, j.id) < (:created_at, :job_id)"
        values |= {"created_at": after.created_at, "job_id": after.id}
    for column, wanted in (("state", states), ("kind", kinds)):
        if wanted:
            conditions += f" AND j.{column} = ANY(:{column})"
            values |= {column: [each.value for each in wanted]}
    rows = session.execute(text(_PAGE.format(conditions=conditions)), values)
    jobs = [JobRecord(**_columns(row)) for row in rows]
    page = jobs[:limit]
    return page, Cursor(page[-1].created_at, page[-1].id) if len(jobs) > limit else None


def _columns(row: Row[Any]) -> Document:
    columns = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public word for it
    columns.pop("shown", None)
    columns["kind"], columns["state"] = JobKind(columns["kind"]), JobState(columns["state"])
    columns["stages"] = [StageRecord.of(stage) for stage in columns["stages"]]
    return columns
