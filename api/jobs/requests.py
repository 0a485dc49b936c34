"""What an owner may ask of a job besides to cancel it: to stop early, and to be tried again. Never commits."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from sqlalchemy import select

from api.errors import Conflict, NotFound
from api.jobs import listing
from api.jobs.event_types import EventType
from api.jobs.events import record_event
from api.jobs.inputs import Copy, Inputs
from api.jobs.locking import LockedJob, lock_job
from api.jobs.models import Job, JobImage, JobLora, Stage
from api.jobs.plan import StagePlan, plan
from api.jobs.states import TERMINAL_JOBS, JobState, StageState
from api.object_keys import input_key, job_lora_key
from duolora.job_configs import read_config

if TYPE_CHECKING:
    import uuid
    from collections.abc import Mapping, Sequence
    from datetime import timedelta

    from sqlalchemy.orm import Session

TRAINING = frozenset({"content_lora", "style_lora", "loras"})
"""Stages whose results others need: there must be something of each."""
RETRYABLE = frozenset({JobState.FAILED, JobState.CANCELED, JobState.EXPIRED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """What a job that tries another one again begins with."""

    retry_of: uuid.UUID
    fields: dict[str, Any]
    """Columns of the new job that are those of the old one."""
    deadline: timedelta | None
    stages: Sequence[StagePlan]
    checkpoints: Mapping[str, dict[str, Any]]
    images: Sequence[Mapping[str, Any]]
    """Columns of its pictures; `key` is the old one's."""
    loras: Sequence[Mapping[str, Any]]
    """Columns of its LoRAs, likewise."""

    def inputs(self, account_id: uuid.UUID, job_id: uuid.UUID) -> Inputs:
        """Return what the old one works with under the keys of the new job."""
        images = [
            JobImage(
                **{**image, "key": input_key(account_id, job_id, image["side"], image["ordinal"], image["sha256"])}
            )
            for image in self.images
        ]
        loras = [
            JobLora(**{**lora, "key": job_lora_key(account_id, job_id, lora["role"], lora["ordinal"], lora["sha256"])})
            for lora in self.loras
        ]
        sources = [row["key"] for row in (*self.images, *self.loras)]
        targets = [*(row.key for row in images), *(row.key for row in loras)]
        copies = [Copy(source=source, target=target) for source, target in zip(sources, targets, strict=True)]
        return Inputs(images=images, loras=loras, copies=copies)


def request_stop(session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID) -> None:
    """Ask for a job to end early and well, with what it has. Again, or after its end: no effect.

    Raises:
        NotFound: the account has no such job.
        Conflict: `nothing_to_keep`: a training stage has neither begun nor left a checkpoint.
    """
    locked = _lock(session, account_id, job_id)
    job = locked.job
    if job.state in TERMINAL_JOBS or job.stop_requested_at is not None or job.cancel_requested_at is not None:
        return
    bare = [stage.name for stage in locked.stages if stage.name in TRAINING and not _has_something(stage)]
    if bare:
        raise Conflict(
            f"There is nothing to keep yet: {', '.join(bare)} has not begun. Cancel the job, or ask again later.",
            code="nothing_to_keep",
        )
    job.stop_requested_at = locked.now
    record_event(session, job, EventType.STOP_REQUESTED, now=locked.now, data={})


def _has_something(stage: Stage) -> bool:
    return stage.state in {StageState.SUCCEEDED, StageState.RUNNING} or stage.checkpoint is not None


def prepare_retry(session: Session, *, account_id: uuid.UUID, job_id: uuid.UUID) -> Retry | uuid.UUID:
    """Lock an ended job and return what another one needs to try it again, or the id of one that does so already.

    Raises:
        NotFound: the account has no such job.
        Conflict: `not_retryable`: it has not ended, has succeeded, or is older than its configuration's form.
    """
    job = _lock(session, account_id, job_id).job
    if job.state not in RETRYABLE:
        raise not_retryable(f"Only a failed, canceled or expired job can be tried again; this one is {job.state}.")
    trying = session.scalar(select(Job.id).where(Job.retry_of == job_id, Job.finished_at.is_(None)))
    if trying is not None:
        return trying
    try:
        stages = plan(read_config(job.params))
    except ValidationError as error:
        raise not_retryable("Its parameters are of an older form; submit a new job.") from error
    return Retry(
        retry_of=job_id,
        fields={
            name: getattr(job, name)
            for name in (
                "kind",
                "name",
                "mock_outcome",
                "params",
                "params_version",
                "request",
                "priority",
                "retention_days",
                "webhook_url",
            )
        },
        deadline=None if job.deadline_at is None else job.deadline_at - job.created_at,
        stages=stages,
        checkpoints=_checkpoints(session, job_id),
        images=_images(session, job_id),
        loras=_loras(session, job_id),
    )


def not_retryable(detail: str) -> Conflict:
    """Return the refusal to try a job again."""
    return Conflict(detail, code="not_retryable")


def _checkpoints(session: Session, job_id: uuid.UUID) -> dict[str, dict[str, Any]]:
    """Return the pointers of the stages that have not succeeded; those that have are found in the library."""
    rows = session.execute(
        select(Stage.name, Stage.checkpoint).where(
            Stage.job_id == job_id, Stage.state != StageState.SUCCEEDED, Stage.checkpoint.is_not(None)
        )
    )
    return {name: checkpoint for name, checkpoint in rows if checkpoint is not None}


def _images(session: Session, job_id: uuid.UUID) -> list[dict[str, Any]]:
    names = ("side", "ordinal", "key", "sha256", "bytes", "width", "height", "content_type")
    rows = session.scalars(select(JobImage).where(JobImage.job_id == job_id).order_by(JobImage.side, JobImage.ordinal))
    return [{name: getattr(row, name) for name in names} for row in rows]


def _loras(session: Session, job_id: uuid.UUID) -> list[dict[str, Any]]:
    names = ("role", "ordinal", "lora_id", "name", "key", "sha256", "bytes", "strength")
    rows = session.scalars(select(JobLora).where(JobLora.job_id == job_id).order_by(JobLora.role, JobLora.ordinal))
    return [{name: getattr(row, name) for name in names} for row in rows]


def _lock(session: Session, account_id: uuid.UUID, job_id: uuid.UUID) -> LockedJob:
    if listing.is_there(session, account_id=account_id, job_id=job_id):
        with suppress(NotFound):
            locked = lock_job(session, job_id)
            if locked.job.deletion_requested_at is None:  # also while this waited for the locks
                return locked
    raise listing.missing(session, account_id=account_id, job_id=job_id)
