"""How attempts, stages and jobs end: finished, failed, given back, canceled, silent, overdue. Never commits."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from api.accounts.quotas import add_stored
from api.errors import problem
from api.jobs.failures import FailureClass, judge
from api.jobs.locking import LockedJob, instant, lock_held, lock_job
from api.jobs.models import Job, MemoryProfile, Stage, StageAttempt
from api.jobs.running import publish
from api.jobs.states import TERMINAL_JOBS, AttemptOutcome, StageState
from api.loras.making import add_made

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy.orm import Session

    from api.jobs.claimed import StoredArtifact

RETRY_BASE = timedelta(seconds=5)
RETRY_CAP = timedelta(minutes=5)

IN_COMPANY = "it was trained together with other jobs, and one of them ended it; it is tried again by itself"


def finish_stage(
    session: Session,
    *,
    stage_id: uuid.UUID,
    fencing_token: uuid.UUID,
    artifacts: Sequence[StoredArtifact],
    timings: dict[str, Any],
    reuse_key: str | None = None,
    reused_job_id: uuid.UUID | None = None,
    stopped_early: bool = False,
) -> None:
    """Publish a stage's artifacts and let the stages run that waited for it; the last one ends the job.

    LoRAs among them appear in the account's library.

    Its checkpoint is forgotten: what it names in the store is of no use any more.

    Args:
        session: an open transaction.
        stage_id: the stage.
        fencing_token: proof that the worker still holds it.
        artifacts: its files, all of them in the store.
        timings: seconds by phase.
        reuse_key: hash of all that made the result, so that the library finds it; not kept of a stopped stage.
        reused_job_id: the job whose result was taken instead of working.
        stopped_early: it ended with what it had.

    Raises:
        LeaseLost: the stage is no longer held by this token; nothing is published.
    """
    locked, stage = lock_held(session, stage_id, fencing_token)
    published = publish(session, stage, artifacts)
    add_made(session, locked.job, artifacts)
    stage.timings, stage.error, stage.checkpoint = timings, None, None
    stage.stopped_early, stage.reused_job_id = stopped_early, reused_job_id
    stage.reuse_key = None if stopped_early else reuse_key
    locked.close_attempt(stage, AttemptOutcome.SUCCEEDED)
    locked.move(stage, StageState.SUCCEEDED)
    locked.tell(stage)
    if locked.job.cancel_requested_at is None:
        locked.wake_dependants()
    locked.settle()
    session.flush()
    add_stored(session, locked.job.account_id, published)


def fail_stage(
    session: Session,
    *,
    stage_id: uuid.UUID,
    fencing_token: uuid.UUID,
    error: dict[str, Any],
    retry_after: timedelta | None,
    kind: FailureClass = FailureClass.DEATH,
    forget_checkpoint: bool = False,
) -> StageState:
    """Record that an attempt failed; returns where the stage stands now.

    With `retry_after` the stage becomes runnable again after that long, unless its attempts are used up; without it the
    stage and the job have failed, and the other stages are canceled. A stage whose job is to be canceled is canceled.

    What shared its passes with other jobs is not blamed, whatever the failure: it becomes runnable again, to be tried
    without them, and nothing is counted. So one that brings others down does it once, and then fails by itself.

    Args:
        session: an open transaction.
        stage_id: the stage.
        fencing_token: proof that the worker still holds it.
        error: a problem document (`api.errors.problem`); stage and attempt are added, and `poisoned` if it ends because
            it kills whoever runs it.
        retry_after: wait before another attempt, None if none can help.
        kind: its class, which says how many in a row are too many.
        forget_checkpoint: whether the next attempt starts from the beginning.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    locked, stage = lock_held(session, stage_id, fencing_token)
    if forget_checkpoint:
        stage.checkpoint = None
    _fail(locked, stage, error, retry_after=retry_after, outcome=AttemptOutcome.RETRIED, kind=kind)
    return stage.state


def release_stage(session: Session, *, stage_id: uuid.UUID, fencing_token: uuid.UUID) -> None:
    """Give a stage back because its worker, or a pass that it shared, has ended; the attempt does not count against it.

    A stage whose job is to be canceled is canceled.

    Raises:
        LeaseLost: the stage is no longer held by this token.
    """
    locked, stage = lock_held(session, stage_id, fencing_token)
    canceled = locked.job.cancel_requested_at is not None
    locked.close_attempt(stage, AttemptOutcome.CANCELED if canceled else AttemptOutcome.RELEASED)
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


def reap_stale(session: Session, *, now: datetime | None = None, limit: int = 100) -> int:
    """Decide about stages whose worker fell silent; returns how many there were.

    A job to be canceled is canceled; a stage with attempts left becomes runnable after a growing wait; else it and its
    job fail with `worker_lost`. What shared its passes with other jobs is not blamed (`fail_stage`).

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
        _fail(
            locked,
            stage,
            error,
            retry_after=wait,
            outcome=AttemptOutcome.LEASE_EXPIRED,
            kind=FailureClass.DEATH,
        )
        reaped += 1
    return reaped


def expire_overdue(session: Session, *, now: datetime | None = None, limit: int = 100) -> int:
    """End the jobs whose deadline has passed; returns how many there were.

    One that never started expires, one that did fails with `deadline_exceeded`; whoever works on it learns it from its
    next write. A job that its owner cancels ends as canceled, whatever its deadline.

    Args:
        session: an open transaction.
        now: the instant to judge by; the database's own if None.
        limit: most jobs in one call.
    """
    moment = now or instant(session)
    overdue = session.scalars(
        select(Job.id)
        .where(Job.finished_at.is_(None), Job.deadline_at < moment, Job.cancel_requested_at.is_(None))
        .order_by(Job.id)
        .limit(limit)
    ).all()
    ended = 0
    for job_id in overdue:
        locked = lock_job(session, job_id)
        job = locked.job
        if job.state in TERMINAL_JOBS or job.cancel_requested_at is not None:
            continue  # it ended in some other way while this waited for the locks
        job.deadline_passed_at = locked.now
        job.error = problem(
            code="deadline_exceeded",
            title="The job's deadline passed before it was done",
            status=504,
            retryable=True,
            detail=f"it was to be done by {job.deadline_at:%Y-%m-%dT%H:%M:%SZ}",
        )
        locked.drop_running()
        locked.drop_unstarted()
        locked.settle()
        ended += 1
    return ended


def _fail(
    locked: LockedJob,
    stage: Stage,
    error: dict[str, Any],
    *,
    retry_after: timedelta | None,
    outcome: AttemptOutcome,
    kind: FailureClass,
) -> None:
    """Count a failure and decide: canceled, tried again, or failed for good; in company, only try again alone."""
    if _had_company(locked, stage):
        stage.alone = True
        # Whoever it was, what was said may be about somebody else's job.
        said = {**error, "detail": IN_COMPANY, "stage": stage.name, "attempt": stage.attempt, "retryable": True}
        released = outcome is AttemptOutcome.RETRIED
        locked.close_attempt(stage, AttemptOutcome.RELEASED if released else outcome, said, kind)
        _return_or_cancel(locked, stage, wait=retry_after or timedelta(0))
        return
    verdict = judge(kind, stage.failure_counts, max_attempts=stage.max_attempts)
    stage.failures += 1
    stage.failure_counts = verdict.counts
    stage.error = {**error, "stage": stage.name, "attempt": stage.attempt}
    if kind is FailureClass.MEMORY:
        stage.memory_profile = MemoryProfile.SMALL
    if locked.job.cancel_requested_at is None and (retry_after is None or verdict.final):
        if verdict.poisoned:
            stage.error = {**stage.error, "poisoned": True}
        locked.close_attempt(stage, AttemptOutcome.FAILED, stage.error, kind)
        locked.move(stage, StageState.FAILED)
        locked.job.error = stage.error
        locked.drop_unstarted()
        locked.drop_running()
        locked.tell(stage)
        locked.settle()
        return
    locked.close_attempt(stage, outcome, stage.error, kind)
    _return_or_cancel(locked, stage, wait=retry_after or timedelta(0))


def _had_company(locked: LockedJob, stage: Stage) -> bool:
    """Say whether the current attempt shares its passes with other jobs."""
    return bool(
        locked.session.scalar(
            select(StageAttempt.jobs > 1).where(
                StageAttempt.stage_id == stage.id, StageAttempt.attempt == stage.attempt
            )
        )
    )


def _return_or_cancel(locked: LockedJob, stage: Stage, *, wait: timedelta) -> None:
    """Take a running stage from its worker: back to runnable after `wait`, or canceled with its job."""
    if locked.job.cancel_requested_at is not None:
        locked.move(stage, StageState.CANCELED)
    else:
        locked.move(stage, StageState.RUNNABLE)
        locked.announce(stage, not_before=locked.now + wait)
    locked.tell(stage)
    locked.settle()
