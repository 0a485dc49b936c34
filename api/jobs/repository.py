"""Every query about jobs and their stages, shared by the API and the worker. Never commits; knows no HTTP.

A running stage belongs to whoever holds its fencing token: each write of a worker brings it and raises `LeaseLost`,
changing nothing, once the database has decided otherwise. Which state follows which is `states.py`; in which order
locks are taken is `locking.py`; which stage is next is `claiming.py`; the hints to workers are `outbox.py`; what the
caller reads is `listing.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from api.errors import LeaseLost, problem
from api.jobs.claiming import ClaimedStage, InputImage, StoredArtifact, claim_stage
from api.jobs.events import EventType, record_event
from api.jobs.locking import STAGE_TOPIC, LockedJob, announce, instant, lock_held, lock_job
from api.jobs.models import Artifact, AttemptOutcome, Job, Stage
from api.jobs.outbox import OutboxMessage, drop_published, republish_runnable, take_outbox
from api.jobs.states import TERMINAL_JOBS, StageState

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from api.jobs.plan import StagePlan

__all__ = [
    "STAGE_TOPIC",
    "ClaimedStage",
    "Heartbeat",
    "InputImage",
    "LeaseLost",
    "NewArtifact",
    "OutboxMessage",
    "StoredArtifact",
    "claim_stage",
    "drop_published",
    "fail_stage",
    "finish_stage",
    "heartbeat",
    "insert_job",
    "reap_stale",
    "record_progress",
    "release_stage",
    "republish_runnable",
    "request_cancel",
    "settle_cancel",
    "take_outbox",
]

RETRY_BASE = timedelta(seconds=5)
RETRY_CAP = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewArtifact:
    """A file that a worker has uploaded and now publishes."""

    name: str
    filename: str
    key: str
    sha256: str
    bytes: int
    content_type: str


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The answer to a sign of life."""

    cancel_requested: bool


def insert_job(
    session: Session, job: Job, stages: Sequence[StagePlan], *, checkpoints: Mapping[str, dict[str, Any]] | None = None
) -> None:
    """Write a job with its pictures and these stages, hints for the runnable ones, its first event.

    Args:
        session: an open transaction.
        job: without stages.
        stages: the plan.
        checkpoints: stage -> pointer to what it goes on from, for a job that tries another one again.
    """
    kept = checkpoints or {}
    now = job.created_at = instant(session)
    job.stages = [
        Stage(
            name=plan.name,
            ordinal=ordinal,
            account_id=job.account_id,
            priority=job.priority or 0,
            queued_at=now,
            weight=plan.weight,
            checkpoint=kept.get(plan.name),
            depends_on=list(plan.depends_on),
            max_attempts=plan.max_attempts,
            state=StageState.WAITING if plan.depends_on else StageState.RUNNABLE,
            runnable_at=None if plan.depends_on else now,
        )
        for ordinal, plan in enumerate(stages)
    ]
    session.add(job)
    session.flush()
    for stage in job.stages:
        if stage.state is StageState.RUNNABLE:
            announce(session, stage, due_at=now, now=now)
    record_event(session, job, EventType.QUEUED, now=now, data={})


def heartbeat(session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID, lease: timedelta) -> Heartbeat:
    """Prolong the lease and hear whether the caller wants to cancel.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    job_id = session.scalar(
        update(Stage)
        .where(Stage.id == stage_id, Stage.fencing_token == fencing_token)
        .values(heartbeat_at=func.now(), lease_expires_at=func.now() + lease)
        .returning(Stage.job_id)
        .execution_options(synchronize_session=False)
    )
    if job_id is None:
        raise LeaseLost(f"stage {stage_id} is not held by this token")
    requested_at = session.scalar(select(Job.cancel_requested_at).where(Job.id == job_id))
    return Heartbeat(cancel_requested=requested_at is not None)


def record_progress(
    session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID, progress: dict[str, Any]
) -> None:
    """Keep the newest report of a running stage: `step`, `total`, and whatever else the worker says.

    Adds `at`, and under `since` the first report of the same count, from which the rate is taken: a stage that begins
    to count anew (pictures first, then training steps) begins a new rate.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    held = (Stage.id == stage_id, Stage.fencing_token == fencing_token)
    row = session.execute(select(Stage.progress, func.extract("epoch", func.now())).where(*held)).first()
    if row is None:
        raise LeaseLost(f"stage {stage_id} is not held by this token")
    before, at = row[0] or {}, float(row[1])
    same_count = before.get("total") == progress.get("total") and before.get("step", 0) <= progress.get("step", 0)
    since = before.get("since") if same_count else None
    if since is None and progress.get("step", 0) > 0:
        since = {"step": progress["step"], "at": at}
    changed = session.execute(
        update(Stage)
        .where(*held)
        .values(progress={**progress, "at": at, "since": since})
        .execution_options(synchronize_session=False)
        .returning(Stage.id)
    ).first()
    if changed is None:
        raise LeaseLost(f"stage {stage_id} is no longer held by this token")


def finish_stage(
    session: Session,
    *,
    stage_id: uuid.UUID,
    fencing_token: uuid.UUID,
    artifacts: Sequence[NewArtifact],
    timings: dict[str, Any],
) -> None:
    """Publish a stage's artifacts and let the stages run that waited for it; the last one ends the job.

    Raises:
        LeaseLost: the stage is no longer held by this token; nothing is published.
    """
    locked, stage = lock_held(session, stage_id, fencing_token)
    session.add_all(
        Artifact(job_id=stage.job_id, stage_id=stage.id, attempt=stage.attempt, **asdict(artifact))
        for artifact in artifacts
    )
    stage.timings, stage.error = timings, None
    locked.close_attempt(stage, AttemptOutcome.SUCCEEDED)
    locked.move(stage, StageState.SUCCEEDED)
    locked.tell(stage)
    if locked.job.cancel_requested_at is None:
        locked.wake_dependants()
    locked.settle()


def fail_stage(
    session: Session,
    *,
    stage_id: uuid.UUID,
    fencing_token: uuid.UUID,
    error: dict[str, Any],
    retry_after: timedelta | None,
) -> StageState:
    """Record that an attempt failed; returns where the stage stands now.

    With `retry_after` the stage becomes runnable again after that long, unless its attempts are used up; without it the
    stage and the job have failed, and the other stages are canceled. A stage whose job is to be canceled is canceled.

    Args:
        session: an open transaction.
        stage_id: the stage.
        fencing_token: proof that the worker still holds it.
        error: a problem document (`api.errors.problem`); stage and attempt are added.
        retry_after: wait before another attempt, None if none can help.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    locked, stage = lock_held(session, stage_id, fencing_token)
    _fail(locked, stage, error, retry_after, AttemptOutcome.RETRIED)
    return stage.state


def release_stage(session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID) -> None:
    """Give a stage back because the worker shuts down; the attempt does not count against it.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    locked, stage = lock_held(session, stage_id, fencing_token)
    locked.close_attempt(stage, AttemptOutcome.RELEASED)
    _return_or_cancel(locked, stage, wait=timedelta(0))


def settle_cancel(session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID) -> None:
    """Record that a worker has stopped a stage because its job is to be canceled.

    Raises:
        LeaseLost: the stage is no longer held by this token.
        ValueError: nobody asked to cancel the job; a bug of the worker.
    """
    locked, stage = lock_held(session, stage_id, fencing_token)
    if locked.job.cancel_requested_at is None:
        raise ValueError(f"nobody asked to cancel job {locked.job.id}")
    locked.close_attempt(stage, AttemptOutcome.CANCELED)
    _return_or_cancel(locked, stage, wait=timedelta(0))


def request_cancel(session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID) -> bool:
    """Ask for a job to stop; returns False if the account has no such job.

    What no worker holds is canceled at once, so a queued job ends here; what runs is stopped by its worker, or by the
    reaper if that is dead. Asking again, or asking an ended job, changes nothing.
    """
    if session.scalar(select(Job.id).where(Job.id == job_id, Job.account_id == account_id)) is None:
        return False
    locked = lock_job(session, job_id)
    job = locked.job
    if job.state in TERMINAL_JOBS or job.cancel_requested_at is not None:
        return True
    job.cancel_requested_at = locked.now
    record_event(session, job, EventType.CANCEL_REQUESTED, now=locked.now, data={})
    locked.drop_unstarted()
    locked.settle()
    return True


def reap_stale(session: Session, *, now: datetime | None = None, limit: int = 100) -> int:
    """Decide about stages whose worker fell silent; returns how many there were.

    A job to be canceled is canceled; a stage with attempts left becomes runnable after a growing wait; else it and its
    job fail with `worker_lost`.

    Args:
        session: an open transaction.
        now: the instant to judge by; the database's own if None.
        limit: most stages in one call.
    """
    moment = now or instant(session)
    expired = session.execute(
        select(Stage.job_id, Stage.id)
        .where(Stage.state == StageState.RUNNING, Stage.lease_expires_at < moment)
        .order_by(Stage.job_id, Stage.id)
        .limit(limit)
    ).all()
    reaped = 0
    for job_id, stage_id in expired:
        locked = lock_job(session, job_id)
        stage = next(stage for stage in locked.stages if stage.id == stage_id)
        if stage.lease_expires_at is None or stage.lease_expires_at >= moment:
            continue  # its worker spoke up, or somebody else decided, while this waited for the locks
        error = problem(
            code="worker_lost",
            title="The worker stopped answering",
            status=500,
            retryable=True,
            detail=f"worker {stage.worker_id} sent no sign of life before its lease ended",
        )
        wait = min(RETRY_BASE * 2**stage.failures, RETRY_CAP)
        _fail(locked, stage, error, wait, AttemptOutcome.LEASE_EXPIRED)
        reaped += 1
    return reaped


def _fail(
    locked: LockedJob,
    stage: Stage,
    error: dict[str, Any],
    retry_after: timedelta | None,
    outcome: AttemptOutcome,
) -> None:
    """Count a failure and decide: canceled, tried again, or failed for good."""
    stage.failures += 1
    stage.error = {**error, "stage": stage.name, "attempt": stage.attempt}
    may_retry = retry_after is not None and stage.failures < stage.max_attempts
    if locked.job.cancel_requested_at is None and not may_retry:
        locked.close_attempt(stage, AttemptOutcome.FAILED, stage.error)
        locked.move(stage, StageState.FAILED)
        locked.job.error = stage.error
        locked.drop_unstarted()
        locked.drop_running()
        locked.tell(stage)
        locked.settle()
        return
    locked.close_attempt(stage, outcome, stage.error)
    _return_or_cancel(locked, stage, wait=retry_after or timedelta(0))


def _return_or_cancel(locked: LockedJob, stage: Stage, *, wait: timedelta) -> None:
    """Take a running stage from its worker: back to runnable after `wait`, or canceled with its job."""
    if locked.job.cancel_requested_at is not None:
        locked.move(stage, StageState.CANCELED)
    else:
        locked.move(stage, StageState.RUNNABLE)
        locked.announce(stage, not_before=locked.now + wait)
    locked.tell(stage)
    locked.settle()
