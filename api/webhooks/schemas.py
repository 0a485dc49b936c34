"""The wire shape of an outgoing webhook."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import Field

from api.jobs.events import EventType
from api.jobs.states import JobState
from api.schemas import Wire


class WebhookUrls(Wire):
    """Where to go from here."""

    self: str


class WebhookData(Wire):
    """Thin on purpose: read the job for the rest."""

    job_id: uuid.UUID
    state: JobState
    code: str | None = Field(None, description="Of a failed job: the problem's code.")
    stage: str | None = Field(None, description="Of a failed job: the stage that failed.")
    attempt: int | None = Field(None, description="Of a failed job: the attempt that failed.")
    urls: WebhookUrls


class WebhookEvent(Wire):
    """Sent once when a job ends. Standard Webhooks 1.0.0; verify the signature over the raw body."""

    type: EventType
    timestamp: datetime
    data: WebhookData
