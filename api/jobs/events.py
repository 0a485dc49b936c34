"""What happened to a job, in order; the terminal events also queue the caller's webhook, in the same transaction."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from api.jobs.models import Event, Job
from api.jobs.states import JobState
from api.webhooks import repository as webhooks

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from sqlalchemy.orm import Session


class EventType(StrEnum):
    """Kinds of events; the same names are the `type` of webhooks."""

    QUEUED = "job.queued"
    STARTED = "job.started"
    STAGE_CHANGED = "job.stage_changed"
    PROGRESS = "job.progress"
    """Throttled; nothing but the newest matters."""
    STOP_REQUESTED = "job.stop_requested"
    CANCEL_REQUESTED = "job.cancel_requested"
    SUCCEEDED = "job.succeeded"
    FAILED = "job.failed"
    CANCELED = "job.canceled"
    EXPIRED = "job.expired"


STATE_EVENTS = {
    JobState.RUNNING: EventType.STARTED,
    JobState.SUCCEEDED: EventType.SUCCEEDED,
    JobState.FAILED: EventType.FAILED,
    JobState.CANCELED: EventType.CANCELED,
    JobState.EXPIRED: EventType.EXPIRED,
}
"""The event that tells of a job's arrival in a state."""

TERMINAL_EVENTS = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED, EventType.EXPIRED})
"""Events of which a job has exactly one in the end, and of which the caller's server is told unasked."""

LIFECYCLE_EVENTS = TERMINAL_EVENTS | {EventType.QUEUED, EventType.STARTED, EventType.STAGE_CHANGED}
"""Events whose deliveries are tried again until the schedule ends."""


def record_event(session: Session, job: Job, kind: EventType, *, now: datetime, data: dict[str, Any]) -> None:
    """Write an event; for a terminal one of a job with a webhook URL also the delivery."""
    event = Event(job_id=job.id, type=kind, data=data, created_at=now)
    session.add(event)
    if kind in TERMINAL_EVENTS and job.webhook_url is not None:
        session.flush()
        webhooks.queue_delivery(
            session,
            account_id=job.account_id,
            job_id=job.id,
            event_id=event.id,
            event_type=kind,
            occurred_at=now,
            data={"job_id": str(job.id), "state": job.state.value, **data, "urls": {"self": job.self_url}},
            url=job.webhook_url,
            traceparent=job.traceparent,
        )
