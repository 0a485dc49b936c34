"""Names of what can happen to a job, and which of them matter to whom. Imports nothing of the service."""

from __future__ import annotations

from enum import StrEnum


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


TERMINAL_EVENTS = frozenset({EventType.SUCCEEDED, EventType.FAILED, EventType.CANCELED, EventType.EXPIRED})
"""Events of which a job has exactly one in the end, and of which the caller's server is told unasked."""

LIFECYCLE_EVENTS = TERMINAL_EVENTS | {EventType.QUEUED, EventType.STARTED, EventType.STAGE_CHANGED}
"""Events whose deliveries are tried again until the schedule ends."""
