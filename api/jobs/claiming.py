"""Which stage is next, and giving it to exactly one worker. Never commits."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.orm import selectinload

from api.jobs.events import EventType, record_event
from api.jobs.locking import LockedJob, instant
from api.jobs.models import Job, Stage, StageAttempt
from api.jobs.plan import JobKind
from api.jobs.states import JobState, StageState, check_job, check_stage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime, timedelta

    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class InputImage:
    """A picture of the job as the store has it."""

    side: str
    ordinal: int
    key: str
    sha256: str
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArtifact:
    """A file that an earlier stage of the same job has published."""

    name: str
    filename: str
    key: str
    sha256: str
    bytes: int
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedStage:
    """What a worker gets to know about the stage it holds."""

    stage_id: uuid.UUID
    job_id: uuid.UUID
    account_id: uuid.UUID
    kind: str
    name: str
    attempt: int
    failures: int
    """Attempts before this one that count."""
    last_error: dict[str, Any] | None
    """Problem of the last of these."""
    fencing_token: uuid.UUID
    params: dict[str, Any]
    """`duolora.config.PersonalizeConfig` as JSON."""
    images: tuple[InputImage, ...]
    upstream: tuple[StoredArtifact, ...]
    """Artifacts of all stages that this one depends on, also indirectly."""
    checkpoint: dict[str, Any] | None
    traceparent: str | None


def claim_stage(
    session: Session, *, worker_id: str, lease: timedelta, kinds: Collection[str] = tuple(JobKind)
) -> ClaimedStage | None:
    """Claim the best runnable stage, or return None when there is none.

    Best: highest priority, then the account with the fewest running stages, then the oldest job. A stage that another
    transaction is just claiming is passed over, so two workers never wait for each other and never get the same one.
    """
    busy = (
        select(Job.account_id, func.count().label("running"))
        .join(Stage, Stage.job_id == Job.id)
        .where(Stage.state == StageState.RUNNING)
        .group_by(Job.account_id)
        .cte("busy")
    )
    stage = session.scalars(
        select(Stage)
        .join(Job, Job.id == Stage.job_id)
        .outerjoin(busy, busy.c.account_id == Job.account_id)
        .where(
            Stage.state == StageState.RUNNABLE,
            Stage.runnable_at <= func.now(),
            Job.cancel_requested_at.is_(None),
            Job.kind.in_(kinds),
        )
        .order_by(Job.priority.desc(), func.coalesce(busy.c.running, 0), Job.created_at, Job.id, Stage.ordinal)
        .limit(1)
        .with_for_update(of=Stage, skip_locked=True, key_share=True),
        execution_options={"populate_existing": True},
    ).first()
    if stage is None:
        return None
    now = instant(session)
    token = uuid.uuid4()
    check_stage(stage.state, StageState.RUNNING)
    stage.state = StageState.RUNNING
    stage.attempt += 1
    stage.worker_id, stage.fencing_token = worker_id, token
    stage.heartbeat_at = stage.started_at = now
    stage.lease_expires_at = now + lease
    if stage.checkpoint is None:
        stage.progress = None
    session.add(
        StageAttempt(stage_id=stage.id, attempt=stage.attempt, worker_id=worker_id, fencing_token=token, started_at=now)
    )
    return _describe(session, _start_job(session, stage, now), stage, token)


def _start_job(session: Session, stage: Stage, now: datetime) -> Job:
    """Make the job of a just claimed stage running, if it is the first, and record both."""
    job = session.scalars(
        select(Job)
        .where(Job.id == stage.job_id)
        .options(selectinload(Job.images), selectinload(Job.artifacts), selectinload(Job.stages))
        .with_for_update(key_share=True),
        execution_options={"populate_existing": True},
    ).one()
    locked = LockedJob(session, job, [stage], now)
    if job.state is JobState.QUEUED:
        check_job(job.state, JobState.RUNNING)
        job.state, job.started_at = JobState.RUNNING, now
        record_event(session, job, EventType.STARTED, now=now, data={})
    locked.tell(stage)
    return job


def _describe(session: Session, job: Job, stage: Stage, token: uuid.UUID) -> ClaimedStage:
    session.flush()
    ancestors = _ancestors(stage, job.stages)
    return ClaimedStage(
        stage_id=stage.id,
        job_id=job.id,
        account_id=job.account_id,
        kind=job.kind,
        name=stage.name,
        attempt=stage.attempt,
        failures=stage.failures,
        last_error=stage.error,
        fencing_token=token,
        params=job.params,
        images=tuple(
            InputImage(
                side=image.side,
                ordinal=image.ordinal,
                key=image.key,
                sha256=image.sha256,
                content_type=image.content_type,
            )
            for image in job.images
        ),
        upstream=tuple(
            StoredArtifact(
                name=artifact.name,
                filename=artifact.filename,
                key=artifact.key,
                sha256=artifact.sha256,
                bytes=artifact.bytes,
                content_type=artifact.content_type,
            )
            for artifact in job.artifacts
            if artifact.stage_id in ancestors
        ),
        checkpoint=stage.checkpoint,
        traceparent=job.traceparent,
    )


def _ancestors(stage: Stage, stages: Iterable[Stage]) -> set[uuid.UUID]:
    """Return the ids of all stages that one depends on, also indirectly."""
    by_name = {other.name: other for other in stages}
    found: set[uuid.UUID] = set()
    pending = list(stage.depends_on)
    while pending:
        other = by_name[pending.pop()]
        if other.id not in found:
            found.add(other.id)
            pending.extend(other.depends_on)
    return found
