"""What happened to a job, in order; what webhooks are to tell of it is queued in the same transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.jobs.event_types import LIFECYCLE_EVENTS, TERMINAL_EVENTS, EventType
from api.jobs.models import Event, Job
from api.jobs.states import JobState
from api.webhooks import repository as webhooks

if TYPE_CHECKING:
    from datetime import datetime
    from typing import Any

    from sqlalchemy.orm import Session

__all__ = ["LIFECYCLE_EVENTS", "STATE_EVENTS", "TERMINAL_EVENTS", "EventType", "record_event"]

STATE_EVENTS = {
    JobState.RUNNING: EventType.STARTED,
    JobState.SUCCEEDED: EventType.SUCCEEDED,
    JobState.FAILED: EventType.FAILED,
    JobState.CANCELED: EventType.CANCELED,
    JobState.EXPIRED: EventType.EXPIRED,
}
"""The event that tells of a job's arrival in a state."""


def record_event(session: Session, job: Job, kind: EventType, *, now: datetime, data: dict[str, Any]) -> None:
    """Write an event and a delivery to each endpoint that wants to hear of it.

    Every caller holds the lock of the job's row or has just inserted it, so that the ids of a job's events are in the
    order of their commits.
    """
    event = Event(job_id=job.id, type=kind, data=data, created_at=now)
    session.add(event)
    session.flush()
    if kind in TERMINAL_EVENTS and job.webhook_url is not None:
        webhooks.adopt_job_endpoint(session, account_id=job.account_id, job_id=job.id, url=job.webhook_url)
    webhooks.queue_deliveries(
        session,
        account_id=job.account_id,
        job_id=job.id,
        event_id=event.id,
        event_type=kind,
        occurred_at=now,
        data=webhooks.event_data(job, data),
        traceparent=job.traceparent,
    )
