"""Wire shapes of webhooks: what is sent to receivers, and what their owners are told of endpoints and deliveries."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from api.jobs.event_types import EventType
from api.jobs.states import JobState
from api.schemas import Wire
from api.webhooks.models import DeliveryState, EndpointState

PING = "webhook.ping"
"""Type of the webhook that says nothing but that it arrived."""

MAX_URL_LENGTH = 2000
MAX_DESCRIPTION_LENGTH = 500


class WebhookUrls(Wire):
    """Where to go from here."""

    self: str


class WebhookData(Wire):
    """Thin on purpose: read the job for the rest. Members may be added."""

    model_config = ConfigDict(extra="allow", frozen=True)

    job_id: uuid.UUID
    state: JobState = Field(description="Of the job, when the event happened.")
    code: str | None = Field(None, description="Of a failed job: the problem's code.")
    stage: str | None = Field(None, description="The stage that changed, reported progress, or failed the job.")
    stage_state: str | None = Field(None, description="Of a stage that changed.")
    attempt: int | None = Field(None, description="The attempt at that stage.")
    urls: WebhookUrls


class WebhookEvent(Wire):
    """What a receiver is sent. Standard Webhooks 1.0.0; verify the signature over the raw body."""

    type: EventType
    timestamp: datetime
    data: WebhookData


class PingData(Wire):
    """Which endpoint was asked to answer."""

    endpoint_id: uuid.UUID
    urls: WebhookUrls


class PingEvent(Wire):
    """What a receiver is sent when its owner wants to know whether it answers."""

    type: Literal["webhook.ping"]
    timestamp: datetime
    data: PingData


Events = Annotated[
    list[EventType],
    Field(
        max_length=len(EventType),
        description="Types to be told of. Empty: the lifecycle, that is all but progress and requests to stop or "
        "cancel; for the endpoint of one job, its end.",
    ),
]
Secret = Annotated[
    str | None,
    Field(
        max_length=200,
        description="`whsec_` and the base64 of 24 to 64 random bytes. Left out, one is made.",
        repr=False,
    ),
]


class EndpointCreate(Wire):
    """A receiver to be told of an account's events."""

    url: str = Field(max_length=MAX_URL_LENGTH, examples=["https://example.org/hook"])
    events: Events = Field(default_factory=list)
    description: str = Field("", max_length=MAX_DESCRIPTION_LENGTH)
    secret: Secret = None


class EndpointPatch(Wire):
    """What is to change; what is left out stays."""

    url: str = Field("", max_length=MAX_URL_LENGTH, description="What is on its way goes there as well.")
    events: Events = Field(default_factory=list)
    description: str = Field("", max_length=MAX_DESCRIPTION_LENGTH)
    state: EndpointState = Field(EndpointState.ENABLED, description="`disabled` gives up what is on its way.")


class SecretRotation(Wire):
    """A secret of one's own, if one is not to be made."""

    secret: Secret = None


class EndpointUrls(Wire):
    """Where to go from here."""

    self: str
    deliveries: str


class EndpointRead(Wire):
    """A receiver of webhooks. Its secret was shown once, when it was made."""

    id: uuid.UUID
    job_id: uuid.UUID | None = Field(description="The one job it is told of; null for all of the account's.")
    url: str
    events: list[EventType] = Field(description="Empty: the lifecycle; for the endpoint of one job, its end.")
    description: str
    state: EndpointState
    disabled_at: datetime | None
    disabled_reason: str | None = Field(
        description="`gone` (it answered 410), `exhausted` (it took nothing for about three days) or `by_owner`."
    )
    previous_secret_expires_at: datetime | None = Field(description="Until then the secret before signs as well.")
    created_at: datetime
    urls: EndpointUrls


class EndpointWithSecret(EndpointRead):
    """A receiver, and the secret that signs what it is sent: shown now and never again."""

    secret: str


class EndpointPage(Wire):
    """All endpoints of an account, or of one of its jobs; there are few."""

    items: list[EndpointRead]


class AttemptRead(Wire):
    """One attempt at a delivery."""

    attempt: int
    started_at: datetime
    duration_ms: int
    status: int | None = Field(description="HTTP status of the answer, null if there was none.")
    error: str | None = Field(description="Why it failed, with the beginning of the answer. Null: it was delivered.")


class DeliveryRead(Wire):
    """One event on its way to one receiver."""

    id: uuid.UUID
    endpoint_id: uuid.UUID | None
    job_id: uuid.UUID | None
    type: str = Field(examples=["job.succeeded"])
    webhook_id: str = Field(description="Its header `webhook-id`.")
    state: DeliveryState
    attempts: int
    next_attempt_at: datetime | None = Field(description="Null once it is settled.")
    last_status: int | None
    last_error: str | None
    replay_of: uuid.UUID | None = Field(description="The delivery that this one sends again.")
    created_at: datetime
    delivered_at: datetime | None


class DeliveryDetail(DeliveryRead):
    """A delivery with what was sent and how each attempt went."""

    url: str
    body: str = Field(description="The exact text that is signed and sent.")
    log: list[AttemptRead]


class DeliveryPage(Wire):
    """A page of deliveries to one endpoint, newest first."""

    items: list[DeliveryRead]
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page. Null at the end.")
    limit: int
    state: DeliveryState | None = Field(description="The filter that was applied.")
