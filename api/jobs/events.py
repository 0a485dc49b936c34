"""What happened to a job, in order; what webhooks are to tell of it is queued in the same transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.jobs.event_types import LIFECYCLE_EVENTS, TERMINAL_EVENTS, EventType
from api.jobs.models import Event, Job
from api.jobs.states import JobState
from api.webhooks import repository as webhooks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from typing import Any

    from sqlalchemy.orm import Session

__all__ = ["LIFECYCLE_EVENTS", "STATE_EVENTS", "TERMINAL_EVENTS", "EventType", "record_event", "record_events"]

STATE_EVENTS = {
    JobState.RUNNING: EventType.STARTED,
    JobState.SUCCEEDED: EventType.SUCCEEDED,
    JobState.FAILED: EventType.FAILED,
    JobState.CANCELED: EventType.CANCELED,
    JobState.EXPIRED: EventType.EXPIRED,
}
"""The event that tells of a job's arrival in a state."""


def record_event(session: Session, job: Job, kind: EventType, *, now: datetime, data: dict[str, Any]) -> None:
    """Write one event, as `record_events` does."""
    record_events(session, job, [(kind, data)], now=now)


def record_events(
    session: Session, job: Job, happened: Sequence[tuple[EventType, dict[str, Any]]], *, now: datetime
) -> None:
    """Write events, with their data, in this order, and a delivery of each to every endpoint that wants to hear of it.

    Every caller holds the lock of the job's row or has just inserted it, so that the ids of a job's events are in the
    order of their commits.
    """
    events = [Event(job_id=job.id, type=kind, data=data, created_at=now) for kind, data in happened]
    session.add_all(events)
    session.flush()
    if job.webhook_url is not None and any(kind in TERMINAL_EVENTS for kind, _ in happened):
        webhooks.adopt_job_endpoint(session, account_id=job.account_id, job_id=job.id, url=job.webhook_url)
    webhooks.queue_deliveries(
        session,
        account_id=job.account_id,
        job_id=job.id,
        occurrences=[
            webhooks.Occurrence(event_id=event.id, type=event.type, data=webhooks.event_data(job, event.data))
            for event in events
        ],
        occurred_at=now,
        traceparent=job.traceparent,
        tracestate=job.tracestate,
        request_id=job.request_id,
    )
