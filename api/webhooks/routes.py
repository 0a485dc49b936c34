"""What the service sends to its callers' servers, for the `webhooks` section of OpenAPI. Nothing is served here."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header

from api.webhooks.schemas import WebhookEvent

router = APIRouter()


@router.post(
    "job-ended",
    operation_id="job_ended",
    summary="A job has ended",
    status_code=HTTPStatus.NO_CONTENT,
    tags=["webhooks"],
)
def job_ended(
    event: WebhookEvent,
    webhook_id: Annotated[str, Header(description="The same for every attempt; drop what you have seen.")],
    webhook_timestamp: Annotated[str, Header(description="Unix seconds of this attempt.")],
    webhook_signature: Annotated[str, Header(description="`v1,` and the base64 HMAC-SHA256 of id.timestamp.body.")],
) -> None:
    """Answer with any 2xx within 20 s; anything else is tried again, ten times over about three days."""
