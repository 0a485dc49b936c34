"""Locks on a job and its stages, in one order for everybody, and the moves made under them.

Order of locks: the stages of one job by id, then the job, then its account. A claim takes one free stage (skipping
locked ones) and perhaps its partner, then the job. Whoever holds a job's lock waits for none of its stages, so no two
of them can wait for each other. A claim that goes on to other jobs, for company, passes over whatever is locked and so
waits for nobody; what a worker writes about stages of several jobs it writes job by job, each in a transaction. Only
`reap_stale` and `expire_overdue` hold several jobs: they take them by id, so that two of them meet in the same order,
and nobody else who holds a lock of one job waits for another's. Nobody who holds an account's lock waits for that of a
stage or a job.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import func, select, update

from api.errors import LeaseLost, NotFound
from api.jobs.events import STATE_EVENTS, EventType, record_event, record_events
from api.jobs.models import Job, OutboxRow, Stage, StageAttempt
from api.jobs.states import (
    TERMINAL_JOBS,
    TERMINAL_STAGES,
    AttemptOutcome,
    JobState,
    StageState,
    check_job,
    check_stage,
    derive_job_state,
)

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.orm import Session

    from api.jobs.failures import FailureClass

STAGE_TOPIC = "stage.runnable"
"""Topic of the hint that a stage can be claimed."""


@dataclass(frozen=True, slots=True)
class LockedJob:
    """A job and all its stages, locked until the transaction ends."""

    session: Session
    job: Job
    stages: Sequence[Stage]
    now: datetime
    """The transaction's instant: everything it writes carries the same one."""

    def move(self, stage: Stage, to: StageState) -> None:
        """Take a stage to another state and drop what belongs to the old one."""
        check_stage(stage.state, to)
        if stage.state is StageState.RUNNING:
            stage.fencing_token = stage.lease_expires_at = None
        stage.state = to
        if to in TERMINAL_STAGES:
            stage.finished_at = self.now

    def close_attempt(
        self,
        stage: Stage,
        outcome: AttemptOutcome,
        error: dict[str, Any] | None = None,
        kind: FailureClass | None = None,
    ) -> None:
        """Write how the current attempt ended; `kind` is the class of its failure."""
        self.session.execute(
            update(StageAttempt)
            .where(StageAttempt.stage_id == stage.id, StageAttempt.attempt == stage.attempt)
            .values(finished_at=self.now, outcome=outcome, error=error, failure_class=kind)
        )

    def announce(self, stage: Stage, *, not_before: datetime | None = None) -> None:
        """Make sure that a hint about a runnable stage is published, at once or when its time comes."""
        stage.runnable_at = not_before or self.now
        announce(self.session, stage, due_at=stage.runnable_at, now=self.now)

    def drop_unstarted(self) -> None:
        """Cancel the stages that no worker holds."""
        for stage in self.stages:
            if stage.state in {StageState.WAITING, StageState.RUNNABLE}:
                self.move(stage, StageState.CANCELED)
                self.tell(stage)

    def drop_running(self) -> None:
        """Take running stages from their workers; each learns it from its next write."""
        for stage in self.stages:
            if stage.state is StageState.RUNNING:
                self.close_attempt(stage, AttemptOutcome.CANCELED)
                self.move(stage, StageState.CANCELED)
                self.tell(stage)

    def wake_dependants(self) -> None:
        """Make the stages runnable whose dependencies have all succeeded."""
        done = {stage.name for stage in self.stages if stage.state is StageState.SUCCEEDED}
        for stage in self.stages:
            if stage.state is StageState.WAITING and done.issuperset(stage.depends_on):
                self.move(stage, StageState.RUNNABLE)
                self.announce(stage)
                self.tell(stage)

    def tell(self, stage: Stage) -> None:
        """Record that a stage has changed; before `settle`, whose event of a job's end is to be its last."""
        record_events(self.session, self.job, [change_of(stage)], now=self.now)

    def settle(self) -> None:
        """Derive the job's state from its stages; on a change record it, once, with its event and webhook."""
        job = self.job
        state = derive_job_state(
            [stage.state for stage in self.stages],
            started=job.started_at is not None,
            overdue=job.deadline_passed_at is not None,
        )
        if state is job.state:
            return
        check_job(job.state, state)
        job.state = state
        data: dict[str, Any] = {}
        if state in TERMINAL_JOBS:
            job.finished_at = self.now
            job.expires_at = None if job.retention_days is None else self.now + timedelta(days=job.retention_days)
        if state is JobState.FAILED and job.error is not None:
            data = {name: job.error[name] for name in ("code", "stage", "attempt") if name in job.error}
        record_event(self.session, job, STATE_EVENTS[state], now=self.now, data=data)


def change_of(stage: Stage) -> tuple[EventType, dict[str, Any]]:
    """Return the event that tells where a stage stands now, with its data."""
    return EventType.STAGE_CHANGED, {"stage": stage.name, "state": stage.state.value, "attempt": stage.attempt}


def lock_job(session: Session, job_id: uuid.UUID) -> LockedJob:
    """Lock a job's stages, then the job, and read them afresh.

    Raises:
        NotFound: the job was purged meanwhile.
    """
    session.flush()
    fresh = {"populate_existing": True}
    stages = session.scalars(
        select(Stage).where(Stage.job_id == job_id).order_by(Stage.id).with_for_update(key_share=True),
        execution_options=fresh,
    ).all()
    job = session.scalars(
        select(Job).where(Job.id == job_id).with_for_update(key_share=True), execution_options=fresh
    ).one_or_none()
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    return LockedJob(session, job, stages, instant(session))


def lock_held(session: Session, stage_id: uuid.UUID, fencing_token: uuid.UUID) -> tuple[LockedJob, Stage]:
    """Lock the job of a stage that a worker holds.

    Raises:
        LeaseLost: the token holds nothing, or lost its hold while this waited for the locks.
    """
    job_id = session.scalar(select(Stage.job_id).where(Stage.id == stage_id, Stage.fencing_token == fencing_token))
    if job_id is None:
        raise LeaseLost(f"stage {stage_id} is not held by this token")
    try:
        locked = lock_job(session, job_id)
    except NotFound as error:
        raise LeaseLost(f"the job of stage {stage_id} was purged") from error
    stage = next(stage for stage in locked.stages if stage.id == stage_id)
    if stage.fencing_token != fencing_token:
        raise LeaseLost(f"stage {stage_id} is no longer held by this token")
    return locked, stage


def announce(session: Session, stage: Stage, *, due_at: datetime, now: datetime) -> None:
    """Write the hint that a stage can be claimed from `due_at` on."""
    stage.announced_at = now
    payload = {"stage_id": str(stage.id), "job_id": str(stage.job_id)}
    session.add(OutboxRow(topic=STAGE_TOPIC, payload=payload, created_at=now, due_at=due_at))


def instant(session: Session) -> datetime:
    """Return the database's time at the start of the transaction."""
    return session.execute(select(func.now())).scalar_one()
