"""What the service sends to its callers' servers, for the `webhooks` section of OpenAPI. Nothing is served here."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header

from api.webhooks.schemas import PingEvent, WebhookEvent

router = APIRouter()

Id = Annotated[str, Header(description="The same for every attempt; drop what you have seen.")]
Timestamp = Annotated[str, Header(description="Unix seconds of this attempt.")]
Signature = Annotated[
    str,
    Header(
        description="`v1,` and the base64 HMAC-SHA256 of id.timestamp.body; two of them, with a blank between, while "
        "a secret is being changed."
    ),
]


@router.post(
    "job-ended",
    operation_id="job_ended",
    summary="A job has ended",
    status_code=HTTPStatus.NO_CONTENT,
    tags=["webhooks"],
)
def job_ended(event: WebhookEvent, webhook_id: Id, webhook_timestamp: Timestamp, webhook_signature: Signature) -> None:
    """Answer with any 2xx within 20 s; anything else is tried again, ten times over about three days. 410 ends it."""


@router.post(
    "job-changed",
    operation_id="job_changed",
    summary="Something else happened to a job",
    status_code=HTTPStatus.NO_CONTENT,
    tags=["webhooks"],
)
def job_changed(
    event: WebhookEvent, webhook_id: Id, webhook_timestamp: Timestamp, webhook_signature: Signature
) -> None:
    """Its queueing, start and stages are tried again as its end is; progress and requests are sent once."""


@router.post(
    "ping",
    operation_id="ping",
    summary="The owner wants to know whether you answer",
    status_code=HTTPStatus.NO_CONTENT,
    tags=["webhooks"],
)
def ping(event: PingEvent, webhook_id: Id, webhook_timestamp: Timestamp, webhook_signature: Signature) -> None:
    """Answer with any 2xx; it is sent once."""
