"""What the service sends to its callers' servers, for the `webhooks` section of OpenAPI. Nothing is served here."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Header

from api.jobs.event_types import LIFECYCLE_EVENTS, EventType
from api.webhooks.schemas import PING, PingEvent, WebhookEvent

router = APIRouter()

Id = Annotated[
    str,
    Header(
        description="The same for every attempt and replay; drop what you have seen.",
        examples=["msg_019ab2f95d207c3b8e0f47a1b6c9d832"],
    ),
]
Timestamp = Annotated[
    str,
    Header(
        description="Unix seconds of this attempt; refuse what is older than some minutes.", examples=["1795428093"]
    ),
]
Signature = Annotated[
    str,
    Header(
        description="`v1,` and the base64 HMAC-SHA256 of id.timestamp.body; two of them, with a blank between, while "
        "a secret is being changed.",
        examples=["v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="],
    ),
]
RequestId = Annotated[
    str | None,
    Header(
        alias="X-Request-Id",
        description="Of the request that made the job, or asked for the ping; the job has it as `request_id`.",
        examples=["7f3c0d52a9e14b6f"],
    ),
]

SUMMARIES = {
    EventType.QUEUED: "A job was accepted",
    EventType.STARTED: "A job's first stage was begun",
    EventType.STAGE_CHANGED: "A stage of a job has changed its state",
    EventType.PROGRESS: "A stage of a job got further",
    EventType.STOP_REQUESTED: "Its owner asked for a job to end early",
    EventType.CANCEL_REQUESTED: "Its owner asked for a job to be given up",
    EventType.SUCCEEDED: "A job has succeeded",
    EventType.FAILED: "A job has failed",
    EventType.CANCELED: "A job was canceled",
    EventType.EXPIRED: "A job's deadline passed before it started",
}
_RETRIED = (
    "Answer with any 2xx within 20 s; anything else is tried again, ten times over about three days. 410 ends it."
)
_ONCE = "Answer with any 2xx; it is sent once."


def _describe(kind: EventType) -> None:
    """Add the webhook of one event."""

    def told(
        event: WebhookEvent,
        webhook_id: Id,
        webhook_timestamp: Timestamp,
        webhook_signature: Signature,
        request_id: RequestId = None,
    ) -> None:
        """Stand for the receiver."""

    router.add_api_route(
        kind.value,
        told,
        methods=["POST"],
        operation_id=kind.value.replace(".", "_"),
        summary=SUMMARIES[kind],
        description=_RETRIED if kind in LIFECYCLE_EVENTS else _ONCE,
        status_code=HTTPStatus.NO_CONTENT,
        tags=["webhooks"],
    )


for _kind in EventType:
    _describe(_kind)


@router.post(
    PING,
    operation_id="webhook_ping",
    summary="The owner wants to know whether you answer",
    description=_ONCE,
    status_code=HTTPStatus.NO_CONTENT,
    tags=["webhooks"],
)
def ping(
    event: PingEvent,
    webhook_id: Id,
    webhook_timestamp: Timestamp,
    webhook_signature: Signature,
    request_id: RequestId = None,
) -> None:
    """Stand for the receiver."""
