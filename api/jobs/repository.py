"""Every query about jobs and their stages, shared by the API and the worker. Never commits; knows no HTTP.

A running stage belongs to whoever holds its fencing token: each write of a worker brings it and raises `LeaseLost`,
changing nothing, once the database has decided otherwise. Which state follows which is `states.py`; in which order
locks are taken is `locking.py`; who gets which stage next is `claiming.py`, in what order is `candidates.py`, what may
share passes is `sharing.py`; what a worker writes meanwhile is `running.py`, how it ends `endings.py`; results taken
again are `library.py`; what is deleted when is `retention.py`; the hints to workers are `outbox.py`; what the caller
reads is `listing.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from api.errors import LeaseLost
from api.identifiers import uuid7
from api.jobs import listing
from api.jobs.claimed import ClaimedStage, InputImage, Proof, StoredArtifact
from api.jobs.claiming import Claimant, claim_stage
from api.jobs.endings import (
    expire_overdue,
    fail_stage,
    finish_stage,
    reap_stale,
    release_stage,
    settle_cancel,
)
from api.jobs.events import EventType, record_event
from api.jobs.failures import FailureClass
from api.jobs.library import Reusable, find_reusable, reuse_key
from api.jobs.locking import STAGE_TOPIC, announce, instant, lock_job
from api.jobs.models import Job, Stage
from api.jobs.outbox import OutboxMessage, drop_published, republish_runnable, take_outbox
from api.jobs.retention import (
    StaleCheckpoint,
    forget_checkpoint,
    overdue_jobs,
    purge_job,
    stale_checkpoints,
    trim_events,
)
from api.jobs.running import (
    Heartbeat,
    LogEntry,
    drop_checkpoint,
    heartbeat,
    publish_early,
    record_checkpoint,
    record_logs,
    record_progress,
)
from api.jobs.sharing import likeness
from api.jobs.states import TERMINAL_JOBS, StageState
from api.jobs.workers import WorkerCount, beat_worker, count_workers, forget_workers, leave_worker

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from api.jobs.plan import StagePlan

__all__ = [
    "STAGE_TOPIC",
    "Claimant",
    "ClaimedStage",
    "FailureClass",
    "Heartbeat",
    "InputImage",
    "LeaseLost",
    "LogEntry",
    "OutboxMessage",
    "Proof",
    "Reusable",
    "StaleCheckpoint",
    "StoredArtifact",
    "WorkerCount",
    "beat_worker",
    "claim_stage",
    "count_workers",
    "drop_checkpoint",
    "drop_published",
    "expire_overdue",
    "fail_stage",
    "find_reusable",
    "finish_stage",
    "forget_checkpoint",
    "forget_workers",
    "heartbeat",
    "insert_job",
    "leave_worker",
    "overdue_jobs",
    "publish_early",
    "purge_job",
    "reap_stale",
    "record_checkpoint",
    "record_logs",
    "record_progress",
    "release_stage",
    "republish_runnable",
    "request_cancel",
    "reuse_key",
    "settle_cancel",
    "stale_checkpoints",
    "take_outbox",
    "trim_events",
]


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
            id=uuid7(),
            name=plan.name,
            ordinal=ordinal,
            account_id=job.account_id,
            priority=job.priority or 0,
            queued_at=now,
            weight=plan.weight,
            checkpoint=kept.get(plan.name),
            likeness=None if job.mock_outcome is not None else likeness(plan.name, job.params),
            depends_on=list(plan.depends_on),
            max_attempts=plan.max_attempts,
            state=StageState.WAITING if plan.depends_on else StageState.RUNNABLE,
            runnable_at=None if plan.depends_on else now,
            announced_at=None if plan.depends_on else now,
        )
        for ordinal, plan in enumerate(stages)
    ]
    session.add(job)
    session.flush()
    for stage in job.stages:
        if stage.state is StageState.RUNNABLE:
            announce(session, stage, due_at=now, now=now)
    record_event(session, job, EventType.QUEUED, now=now, data={})


def request_cancel(session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID) -> bool:
    """Ask for a job to stop; returns False if the account has no such job.

    What no worker holds is canceled at once, so a queued job ends here; what runs is stopped by its worker, or by the
    reaper if that is dead. Asking again, or asking an ended job, changes nothing.
    """
    if not listing.is_there(session, account_id=account_id, job_id=job_id):
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
